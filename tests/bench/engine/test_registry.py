"""Providers are decorated functions, in the project or outside."""

import sys
from pathlib import Path

import pytest
from helpers.benchmarks import SHAPE, TINY_SETTING, Inputs

from bench.engine.registry import Benchmark, Case, Prepared, load_providers
from bench.ops import LINEAR


def test_a_provider_is_a_decorated_function_and_registered_once() -> None:
    benchmark = Benchmark("double", lambda *_: Inputs(), (), ())
    benchmark.provider("mine", devices=("cuda",))(lambda _: Prepared(lambda: None, None))
    assert benchmark.providers["mine"].devices == ("cuda",)
    with pytest.raises(ValueError, match="registered twice"):
        benchmark.provider("mine")(lambda _: Prepared(lambda: None, None))
    assert Case("cpu", benchmark, SHAPE, TINY_SETTING).name == "double/tiny/2x32/float32/forward/dropout 0"


def test_a_module_of_the_current_folder_registers_providers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_module_of_mine.py").write_text(
        "from bench.ops.linear import LINEAR\n"
        '@LINEAR.provider("of mine")\n'
        "def _(inputs):\n    return inputs.prepare(lambda p: lambda x, weight, bias: x @ weight.T + bias)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(LINEAR.providers)
    load_providers(["a_module_of_mine"])
    try:
        assert set(LINEAR.providers) - before == {"of mine"}
    finally:
        LINEAR.providers.pop("of mine", None)
    with pytest.raises(ModuleNotFoundError, match="another_one"):
        load_providers(["another_one"])

"""Compiled peers are compiled once for all batches."""

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from bench.engine import torch_compile
from bench.engine.shapes import Setting
from bench.ops.layer_norm import layer_norm_chain

SETTINGS = ("recompile_limit", "fail_on_recompile_limit_hit", "specialize_float")


@pytest.fixture
def _settings_of_the_compiler() -> Iterator[None]:
    """Restores what the suite sets for its whole process."""

    def forget() -> None:
        torch._dynamo.reset()
        torch_compile.compiled.cache_clear()
        torch_compile._prepare.cache_clear()

    forget()
    dynamo, functorch = torch._dynamo.config, torch._functorch.config
    settings = {name: getattr(dynamo, name) for name in SETTINGS}
    with dynamo.patch(settings), functorch.patch(donated_buffer=functorch.donated_buffer):
        yield
    forget()


@pytest.mark.usefixtures("_settings_of_the_compiler")
def test_sizes_of_the_model_are_constants_and_those_of_the_batch_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch_compile, "backend", lambda device: counter)
    chain = torch_compile.compiled(layer_norm_chain, "cpu", ((0,), (0,), (), (), ()))
    frames = []
    for rows, size, p in ((8, 16, 0.1), (9, 16, 0.1), (700, 16, 0.1), (8, 32, 0.1), (11, 32, 0.1), (12, 32, 0.0)):
        x, vector = torch.randn(rows, size), torch.randn(size)
        chain(x, x.clone(), vector, vector.clone(), vector.clone(), p)
        frames.append(counter.frame_count)
    assert frames == [1, 1, 1, 2, 2, 3]


def test_a_cpu_compiles_in_dry_runs_only() -> None:
    refusals = [
        torch_compile.needs_compiler(None, setting) for setting in (Setting(), Setting("cuda"), Setting(tiny=True))
    ]
    assert refusals == ["is compiled for GPUs only", None, None]

"""The doors: cases in order of importance, dry runs, resuming, providers from outside."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.benchmarks import CEILINGS, some_cases
from helpers.paths import ROOT

from bench import gpu, run, suite
from bench.engine import loop
from bench.engine.environment import RESULTS
from bench.engine.loop import LostContextError
from bench.engine.shapes import FORWARD
from bench.ops import LINEAR

PARTS = ("cpu", "kernels", "models")
CUDA_ONLY = {
    "varlen_attn", "padded sdpa, flash", "padded sdpa, cudnn", "liger", "varlen_attn, compiled", "padding-free, graphs"
}  # fmt: skip
FORWARD_ONLY = {"matrix products", "epilogue", "padding-free, batch-invariant"}
NOT_COMPARED = {"XLM-R, sdpa", "matrix products"}


@pytest.fixture
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def written(folder: Path) -> dict[str, Any]:
    (path,) = folder.iterdir()  # no temporary file stays
    return json.loads(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def dry_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All parts, as `make bench` and `make gpu` would start them; the CPU's is not interpreted."""
    files = {}
    for part in PARTS:
        folder = tmp_path_factory.mktemp(part)
        interpreted = "0" if part == "cpu" else "1"
        variables = os.environ | {"TRITON_INTERPRET": interpreted, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        door = ["bench.run", "--threads", "1"] if part == "cpu" else ["bench.gpu", part]
        command = [sys.executable, "-m", *door, "--tiny", "--output", str(folder)]
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        files[part] = written(folder)
    return files


def check_rows(content: dict[str, Any]) -> None:
    """Each figure says how it was checked, and its numbers fit together."""
    assert content["tiny"]
    assert {"commit", "dirty", "date", "device", "processor", "versions", "suite"} <= content.keys()
    (about,) = content["runs"]
    assert {"clocks_before", "clocks_after", "seconds"} <= about.keys()
    assert min(about["ceilings"].values()) > 0
    for row in content["rows"]:
        assert row["run"] == 0
        assert 0 < row["min_s"] <= row["p10_s"] <= row["time_s"] <= row["p90_s"]
        assert row["host_s"] > 0
        assert row["padded_tokens"] >= row["real_tokens"] > 0
        compared = row["provider"] not in NOT_COMPARED
        assert (row["checked"] != "not compared") == compared
        assert not compared or 0 <= row["error_share"] <= 1
        assert row["bytes"] > 0
        assert row["gbps"] == pytest.approx(row["bytes"] / row["time_s"] / 1e9, rel=1e-3)
        assert ("gradients" in row["checked"]) == (compared and row["passes"] != FORWARD)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_the_dry_run_goes_through_every_provider(part: str, dry_runs: dict[str, dict[str, Any]]) -> None:
    content = dry_runs[part]
    chosen = suite.cases(part, "cpu", tiny=True)
    assert content["done"] == [case.name for case in chosen]
    assert (content["left_out"], content["failed"]) == ([], [])
    expected = {(case.name, name) for case in chosen for name in case.benchmark.providers}
    timed = {(row["case"], row["provider"]) for row in content["rows"]}
    skipped = {(one["case"], one["provider"]) for one in content["skipped"]}
    assert timed | skipped == expected
    assert not timed & skipped
    kernels_only = {"two passes", "epilogue"} if part == "cpu" else set()
    assert {name for _, name in skipped} <= CUDA_ONLY | FORWARD_ONLY | kernels_only
    assert not {row["provider"] for row in content["rows"]} & CUDA_ONLY
    if part != "cpu":
        assert {row["provider"] for row in content["rows"]} >= FORWARD_ONLY & {name for _, name in expected}
    assert all(one["reason"] for one in content["skipped"])
    check_rows(content)


@pytest.mark.slow
def test_models_say_what_their_figures_depend_on(dry_runs: dict[str, dict[str, Any]]) -> None:
    for row in dry_runs["models"]["rows"]:
        trains = row["operation"].startswith("training")
        assert row["optimizer"] == ({"training": False, "training+AdamW": True}[row["operation"]] if trains else None)
        assert (row["weights_dtype"], row["autocast"]) == (("float32", "bfloat16") if trains else ("bfloat16", None))
        assert (row["dropout_p"] > 0) == trains
        assert (row["real_tokens"], row["padded_tokens"]) == (24, 46)
        assert {"histogram", "order", "sequences", "batches"} <= row.keys()
        assert "own" in row["note"] or row["provider"] != "XLM-R, sdpa"
        if row["provider"] != "matrix products":
            memory = row["memory_bytes"]
            assert memory["total"] == memory["peak"] + memory["weights"] + memory["optimizer"]
            assert (memory["optimizer"] > 0) == ("AdamW" in row["operation"])
            assert ("activations" in memory) == trains


@pytest.mark.slow
def test_a_cpu_trains_in_float32_without_the_word_table(dry_runs: dict[str, dict[str, Any]]) -> None:
    rows = [row for row in dry_runs["cpu"]["rows"] if row["operation"] == "training"]
    assert rows
    for row in rows:
        assert (row["weights_dtype"], row["autocast"], row["dtype"]) == ("float32", None, "float32")
        assert row["memory_bytes"]["activations"] > 0


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize(
    ("part", "only"),
    [
        pytest.param("cpu", "^training/", marks=pytest.mark.slow),
        ("kernels", r"bias\+gelu.*backward/dropout 0.1"),
    ],
)
def test_a_dry_run_checks_times_and_writes(part: str, only: str, tmp_path: Path) -> None:
    door = (run.main, ["--threads", "1"]) if part == "cpu" else (gpu.main, [part])
    main, arguments = door
    assert main([*arguments, "--tiny", "--only", only, "--output", str(tmp_path)]) == 0
    content = written(tmp_path)
    check_rows(content)
    assert (content["failed"], len(content["done"]), content["suite"], content["only"]) == ([], 1, part, only)
    assert {row["provider"] for row in content["rows"]} >= ({"padded"} if part == "cpu" else {"erniem_fast", "torch"})


PROVIDERS = """
from bench.ops.linear import LINEAR

@LINEAR.provider("right one of mine")
def _(inputs):
    return inputs.prepare(lambda p: lambda x, weight, bias: x @ weight.T + bias)

@LINEAR.provider("wrong one of mine")
def _(inputs):
    return inputs.prepare(lambda p: lambda x, weight, bias: x @ weight.T)
"""


@pytest.mark.usefixtures("_no_gpu")
def test_providers_from_outside_are_checked_before_they_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_linear_layers.py").write_text(PROVIDERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    output = tmp_path / "results"
    try:
        arguments = ["kernels", "--tiny", "--only", "^linear/", "--provider", "my_linear_layers"]
        assert gpu.main([*arguments, "--output", str(output)]) == 0
    finally:
        for name in ("right one of mine", "wrong one of mine"):
            LINEAR.providers.pop(name, None)
    content = written(output)
    (row,) = (row for row in content["rows"] if row["provider"] == "right one of mine")
    assert row["checked"] == "output"
    assert row["ratio"] > 0
    assert "wrong one of mine" not in {row["provider"] for row in content["rows"]}
    (failure,) = content["failed"]
    assert failure["provider"] == "wrong one of mine"
    assert "WrongResultError: error of the output" in failure["message"]
    assert content["providers"] == ["my_linear_layers"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--provider", "no_such_module", "there is no module 'no_such_module'"),
        ("--provider", "json.no_such_module", "there is no module 'json.no_such_module'"),
        ("--provider", "no_such_package.module", "there is no module 'no_such_package.module'"),
        ("--provider", "mine.py", "there is no module 'mine.py'; expected a name to import, such as mine"),
        ("--provider", "./mine", "there is no module './mine'"),
        ("--provider", "", "there is no module ''"),
        ("--only", "(", "'(' is no regular expression"),
    ],
)
def test_wrong_options_are_one_line(
    option: str,
    value: str,
    message: str,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mine.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    with pytest.raises(SystemExit) as exit_code:
        gpu.main(["kernels", "--tiny", option, value, "--output", str(tmp_path / "results")])
    assert exit_code.value.code == 2
    assert f"argument {option}: {message}" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_cases_come_once_and_the_most_important_first() -> None:
    found = {part: suite.cases(part, "cpu" if part == "cpu" else "cuda", tiny=False) for part in PARTS}
    for chosen in found.values():
        names = [case.name for case in chosen]
        assert len(set(names)) == len(names)
    kernels, models, cpu = found["kernels"], found["models"], found["cpu"]
    assert kernels[0].name == "attention/pairs-64k/2x768/bfloat16/forward/dropout 0"
    assert [case.benchmark.name for case in kernels[:36:6]] == [one.name for one in suite.BENCHMARKS["kernels"]]
    assert models[0].name == "inference/pairs-64k/12x768/bfloat16/forward/dropout 0"
    assert {case.setting.dtype for case in models} == {torch.bfloat16, torch.float16}
    assert {case.shape.sizes.num_layers for case in models} == {12, 24}
    assert {case.setting.dtype for case in cpu} == {torch.float32}
    assert [case.benchmark.name for case in cpu[:3]] == ["inference", "inference", "training"]
    assert {case.setting.passes for case in cpu if case.benchmark.name != "training"} == {FORWARD}


@pytest.mark.usefixtures("_no_gpu")
def test_the_command_resumes_the_newest_file_of_the_same_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    chosen = some_cases(monkeypatch, "ab", lambda name: None)
    monkeypatch.setattr(suite, "cases", lambda part, device, tiny: chosen)
    about = {"date": "2030-01-02T03:04:05", "commit": "0123abc", "dirty": False, "device": "cpu", "processor": "any"}
    monkeypatch.setattr(suite, "describe", lambda device: dict(about))
    arguments = ["kernels", "--tiny", "--output", str(tmp_path)]
    assert gpu.main([*arguments, "--seconds", "-1"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["gpu-kernels-cpu-2030-01-02.json"]
    assert written(tmp_path)["left_out"] == [case.name for case in chosen]
    about["date"] = "2030-01-03T03:04:05"
    assert gpu.main([*arguments, "--resume"]) == 0
    content = written(tmp_path)
    assert content["done"] == [case.name for case in chosen]
    assert [row["run"] for row in content["rows"]] == [1, 1]
    assert gpu.main([*arguments, "--resume"]) == 1
    assert "nothing to go on with" in capsys.readouterr().err


@pytest.mark.usefixtures("_no_gpu")
def test_another_process_goes_on_after_a_lost_context(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = some_cases(monkeypatch, "abc", lambda name: None)
    monkeypatch.setattr(suite, "cases", lambda part, device, tiny: chosen)
    lost = iter([False, True])
    monkeypatch.setattr(loop, "context_is_lost", lambda device: next(lost))
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: started.append(arguments))
    arguments = ["kernels", "--tiny", "--only", "x|/", "--provider", "json", "--output", str(tmp_path)]
    assert gpu.main(arguments) == 0
    content = written(tmp_path)
    assert content["done"] == [chosen[0].name, chosen[1].name]
    assert content["left_out"] == [chosen[2].name]
    ((*_, door, part, resume, _, seconds, _, folder, _, only, _, module, tiny),) = started
    assert (door, part, resume, folder) == ("bench.gpu", "kernels", "--resume", str(tmp_path))
    assert (only, module, tiny) == ("x|/", "json", "--tiny")
    assert 0 < float(seconds) <= suite.SECONDS["kernels"]


def test_a_context_that_is_lost_at_the_end_starts_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(suite, "cases", lambda part, device, tiny: [])

    def lose(*_: Any) -> None:
        raise LostContextError("lost")

    monkeypatch.setattr(suite, "run", lose)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("another process was started"))
    assert run.main(["--threads", "1", "--tiny", "--output", str(tmp_path)]) == 0


@pytest.mark.parametrize("provider", ["erniem_fast", "padding-free, packed input", "all", "torch"])
def test_a_failure_of_ours_is_an_exit_code(provider: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(file: Any, *_: Any) -> None:
        file.content["failed"].append({"case": "any", "provider": provider, "message": "wrong"})

    monkeypatch.setattr(suite, "run", fail)
    assert run.main(["--threads", "1", "--tiny", "--output", str(tmp_path)]) == int(provider != "torch")


def test_partial_and_dry_runs_leave_the_results_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(suite, "RESULTS", tmp_path)
    monkeypatch.setattr(loop, "ceilings", lambda device, tiny: CEILINGS)
    for arguments in (["--tiny"], ["--only", "inference"]):
        assert run.main([*arguments, "--threads", "1", "--seconds", "-1"]) == 0
        assert not list(tmp_path.iterdir())
    assert run.main(["--threads", "1", "--seconds", "-1"]) == 0
    assert written(tmp_path)["suite"] == "cpu"
    assert RESULTS == ROOT / "bench" / "results"


@pytest.mark.usefixtures("_no_gpu")
def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture) -> None:
    for part in ("kernels", "models", "check"):
        assert gpu.main([part]) == 0
        assert "SKIPPED: no CUDA device" in capsys.readouterr().out


def test_without_a_part_both_are_run_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(command: list[str]) -> subprocess.CompletedProcess:
        started.append(command[3:])
        return subprocess.CompletedProcess(command, len(started) - 1)

    monkeypatch.setattr(subprocess, "run", start)
    assert gpu.main(["--tiny", "--resume"]) == 1
    assert started == [["kernels", "--tiny", "--resume"], ["models", "--tiny", "--resume"]]

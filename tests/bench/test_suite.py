"""The doors: cases in order of importance, dry runs, resuming, providers from outside."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.benchmarks import CEILINGS, some_cases
from helpers.paths import ROOT

from bench import gpu, run, suite
from bench.engine import loop
from bench.engine.environment import RESULTS
from bench.engine.processes import run_for
from bench.engine.registry import CPU_PARTS, Case
from bench.engine.shapes import BOTH, FORWARD
from bench.ops import ATTENTION, LINEAR, LINEAR_CROSS_ENTROPY
from bench.ops.inputs import DROPOUT_P
from bench.report import goals
from bench.tools import check
from bench.tools.workloads import TUNED

PARTS = ("cpu", "families", "kernels", "models")
"""Those whose cases are providers in turns; `serving` has tests of its own."""
CUDA_ONLY = {
    "varlen_attn", "padded sdpa, flash", "padded sdpa, cudnn", "liger", "varlen_attn, compiled", "padding-free, graphs",
    "transformers, varlen_attn, compiled",
}  # fmt: skip
FORWARD_ONLY = {"matrix products", "epilogue", "padding-free, batch-invariant"}
NOT_COMPARED = {"XLM-R, sdpa", "matrix products", "bare forwards"}


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
        interpreted = "0" if part in CPU_PARTS else "1"
        variables = os.environ | {"TRITON_INTERPRET": interpreted, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        door = ["bench.run", part, "--threads", "1"] if part in CPU_PARTS else ["bench.gpu", part]
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
    rows = [row for row in dry_runs["models"]["rows"] if row["operation"] != "engine"]
    assert len(rows) > 20
    for row in rows:
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
    door = (run.main, ["--threads", "1"]) if part == "cpu" else (run.main, [part])
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
        assert run.main([*arguments, "--output", str(output)]) == 0
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
    found = {part: suite.cases(part, "cpu" if part in CPU_PARTS else "cuda", tiny=False) for part in PARTS}
    for chosen in found.values():
        names = [case.name for case in chosen]
        assert len(set(names)) == len(names)
    kernels, models, cpu, families = (found[part] for part in ("kernels", "models", "cpu", "families"))
    assert [case.benchmark.name for case in kernels[:7]] == [one.name for one in suite.BENCHMARKS["kernels"]]
    assert {(case.shape.name, case.setting.passes) for case in kernels[:6]} == {("pairs-64k", FORWARD)}
    assert models[0].name == "inference/pairs-64k/12x768/bfloat16/forward/dropout 0"
    assert {case.setting.dtype for case in models} == {torch.bfloat16, torch.float16}
    assert {case.shape.sizes.num_layers for case in models} == {12, 24}
    assert {case.setting.dtype for case in (*cpu, *families)} == {torch.float32}
    assert {case.benchmark.name for case in families[:4]} == {"XLM-R", "XLM"}
    assert [case.benchmark.name for case in models if "XLM-R" in case.benchmark.name] == ["XLM-R"]
    assert [case.benchmark.name for case in cpu[:3]] == ["inference", "inference", "training"]
    trained = ("training", "masked-LM loss")
    assert {case.setting.passes for case in cpu if case.benchmark.name not in trained} == {FORWARD}


@pytest.mark.parametrize(("part", "most", "seconds_a_case"), [("kernels", 40, 10.0), ("models", 13, 32.0)])
def test_a_part_s_first_cases_are_all_that_its_goals_need(part: str, most: int, seconds_a_case: float) -> None:
    """By the costs of a case that bench/results/README.md assumes, they fit into the part's time."""
    first = suite.cases(part, "cuda", tiny=False)[:most]
    assert most * seconds_a_case <= suite.SECONDS[part]
    asked = goals.needed(part)
    assert len(asked) >= len(goals.GOALS[part])
    for fields in asked:
        wanted = {key: value for key, value in fields.items() if key != "provider"}
        assert any(wanted.items() <= case.fields.items() for case in first), fields
        names = {name for case in first if wanted.items() <= case.fields.items() for name in case.benchmark.providers}
        assert fields.get("provider", "erniem_fast") in names | {"erniem_fast"}
    if part == "kernels":
        attention = {(case.shape.name, case.setting.dropout_p) for case in first if case.benchmark is ATTENTION}
        shapes = [f"{length}-64k" for length in (512, 128, 64, 32, 16, 256, "xquad")]
        assert attention >= {(shape, p) for shape in shapes for p in (0.0, DROPOUT_P)}


def test_a_training_goal_has_as_many_tokens_as_the_kernels_need() -> None:
    (case,) = [case for case in suite.cases("models", "cuda", False) if case.name.startswith("training/pairs-64k/")]
    assert case.shape.real_tokens == 64 * 1024
    assert len(case.shape.batches) == 1


def test_a_smoke_test_is_one_case_of_every_operation_by_us_alone() -> None:
    found = suite.cases("smoke", "cuda", tiny=False)
    assert [case.benchmark for case in found] == list(suite.BENCHMARKS["kernels"])
    assert all([one.name for one in case.providers()] == ["erniem_fast"] for case in found)
    assert {case.setting.passes for case in found if case.benchmark is not LINEAR} == {BOTH}
    without = (LINEAR, LINEAR_CROSS_ENTROPY)
    assert {case.setting.dropout_p for case in found if case.benchmark not in without} == {DROPOUT_P}


ABOUT = {"date": "2030-01-02", "commit": "c", "dirty": False, "sources": "s", "device": "cpu", "processor": "p"}
DIED = {"under_way": "a"}


@pytest.fixture
def some(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Three cases, on a machine of its own."""
    chosen = some_cases(monkeypatch, "abc", lambda name: None)
    monkeypatch.setattr(suite, "cases", lambda part, device, tiny: chosen)
    monkeypatch.setattr(suite, "describe", lambda device: dict(ABOUT))
    return chosen


@pytest.mark.usefixtures("_no_gpu")
def test_a_part_resumes_the_newest_file_of_the_same_code(
    some: list[Case], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["kernels", "--tiny", "--output", str(tmp_path / "one")]
    assert run.main([*arguments, "--seconds", "-1"]) == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["gpu-kernels-cpu-2030-01-02.json"]
    assert written(tmp_path / "one")["left_out"] == [case.name for case in some]
    later = ABOUT | {"date": "2030-01-03", "commit": None, "dirty": True}
    monkeypatch.setattr(suite, "describe", lambda device: dict(later))
    (tmp_path / "one").chmod(0o555)  # as it comes back from another machine
    another = ["kernels", "--tiny", "--output", str(tmp_path / "two"), "--resume", str(tmp_path / "one")]
    for _ in range(2):  # the second time nothing is left
        assert run.main(another) == 0
        content = written(tmp_path / "two")
        assert content["done"] == [case.name for case in some]
        assert [row["run"] for row in content["rows"]] == [1, 1, 1]
    monkeypatch.setattr(suite, "describe", lambda device: later | {"sources": "other"})
    assert run.main(another) == 1
    assert "cannot be gone on with: sources differ" in capsys.readouterr().err


@pytest.mark.usefixtures("_no_gpu")
def test_a_lost_context_is_an_exit_code(some: list[Case], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lost = iter([False, True, True])
    monkeypatch.setattr(loop, "context_is_lost", lambda device: next(lost))
    arguments = ["kernels", "--tiny", "--output", str(tmp_path)]
    assert run.main(arguments) == suite.LOST
    content = written(tmp_path)
    assert (content["done"], content["left_out"]) == ([some[0].name, some[1].name], [some[2].name])
    assert run.main([*arguments, "--resume"]) == 0, "nothing is left to go on with"


@pytest.mark.parametrize("provider", ["erniem_fast", "padding-free, packed input", "all", "torch"])
def test_a_failure_of_ours_is_an_exit_code(provider: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(file: Any, *_: Any) -> None:
        file.content["failed"].append({"case": "any", "provider": provider, "message": "wrong"})

    monkeypatch.setattr(suite, "run", fail)
    monkeypatch.setattr(suite, "describe", lambda device: dict(ABOUT))
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


@pytest.mark.usefixtures("_no_gpu")
def test_without_a_part_those_with_matching_cases_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    started: list[str] = []

    def start(command: list[str], seconds: float) -> int:
        started.append(command[3])
        return len(started) - 1

    monkeypatch.setattr(gpu, "run_for", start)
    arguments = ["--tiny", "--output", str(tmp_path), "--only"]
    assert gpu.main([*arguments, ""]) == 1
    assert gpu.main([*arguments, "^latency"]) == 2
    assert started == ["kernels", "models", "models"]
    for main in (gpu.main, run.main):
        given = arguments if main is gpu.main else ["kernels", *arguments]
        with pytest.raises(SystemExit) if main is gpu.main else nullcontext():
            assert main([*given, "no such case"]) == 2
        assert "--only matches the name of no case; one is attention/" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Workers:
    """Processes that end in some way after the cases they are told to, instead of those that `bench.gpu` starts."""

    def __init__(self, *ends: Any) -> None:
        self.ends, self.commands = list(ends), []

    def __call__(self, command: list[str], seconds: float) -> int | None:
        self.commands.append(command)
        end = self.ends.pop(0) if self.ends else {}
        if end.get("code", 0) is not None or "content" in end:
            words = dict(pairwise(command))
            folder, part = Path(words["--output"]), "check" if "check" in command else command[3]
            content = {"sources": gpu.digest(*gpu.SOURCES), "tiny": True, "left_out": [], "failed": []}
            if part == "check":
                tests = {"passed": 3, "failed": {"one": "wrong"} if end.get("code") else {}}
                content |= {"tests": tests, "compute_sanitizer": "no errors"}
            folder.mkdir(exist_ok=True)
            path = folder / f"gpu-{part}-cpu-2030-01-02.json"
            path.write_text(json.dumps(content | {"under_way": None} | end.get("content", {})), encoding="utf-8")
        return end.get("code", 0)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    found = Workers()
    monkeypatch.setattr(gpu, "run_for", found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return found


@pytest.mark.parametrize(
    "end",
    [{"code": suite.LOST}, {"code": 1, "content": {"under_way": "a"}}, {"code": -11, "content": {"under_way": "a"}}],
)
def test_another_process_goes_on_after_a_hang_or_a_lost_context(
    end: dict[str, Any], workers: Workers, tmp_path: Path
) -> None:
    workers.ends = [end, {"code": 1}]
    arguments = ["kernels", "--tiny", "--only", "x|/", "--provider", "json", "--output", str(tmp_path)]
    assert gpu.main([*arguments, "--seconds", "100"]) == 1
    first, second = workers.commands
    assert second == [*first[:5], second[5], *first[6:], "--resume"]
    assert float(second[5]) <= float(first[5]) == 100
    assert first[1:4] == ["-m", "bench.run", "kernels"]
    assert first[6:] == ["--output", str(tmp_path), "--only", "x|/", "--provider", "json", "--tiny"]
    workers.ends, workers.commands = [end], []
    assert gpu.main([*arguments, "--seconds", "0"]) == 1
    assert len(workers.commands) == 1, "no time is left"


def names(workers: Workers) -> list[str]:
    return [command[3] for command in workers.commands]


def test_all_runs_every_part_once_and_then_what_is_left(workers: Workers, tmp_path: Path) -> None:
    arguments = ["all", "--tiny", "--output", str(tmp_path / "one"), "--minutes", "60"]
    workers.ends = [{}, {"code": 1}, {"content": {"left_out": ["a"]}}, {}]
    assert gpu.main(arguments) == 1, "the check found something"
    assert names(workers) == ["smoke", "check", "kernels", "models", "kernels"]
    assert len(list((tmp_path / "one").iterdir())) <= 8
    workers.commands.clear()
    another = [*arguments[:3], str(tmp_path / "two"), *arguments[4:], "--resume", str(tmp_path / "one")]
    assert gpu.main(another) == 1
    assert workers.commands == [], "all of it is whole, and what the check found stays wrong"
    kernels = tmp_path / "two" / "gpu-kernels-cpu-2030-01-02.json"
    kernels.write_text(kernels.read_text("utf-8").replace('"left_out": []', '"left_out": ["a"]'), encoding="utf-8")
    (tmp_path / "two" / "gpu-models-cpu-2030-01-02.json").unlink()
    assert gpu.main([*another[:-1], str(tmp_path / "two")]) == 1
    assert names(workers) == ["models", "kernels"], "what had no turn comes first"
    workers.commands.clear()
    assert gpu.main(another[:-2]) == 0
    assert names(workers) == ["smoke", "check", "kernels", "models"], "without --resume all of it is done again"
    assert not any("--resume" in command for command in workers.commands)


def test_a_folder_to_resume_from_must_hold_results(workers: Workers, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--resume must name a folder of result files, got .*nowhere"):
        gpu.main(["all", "--tiny", "--output", str(tmp_path), "--resume", str(tmp_path / "nowhere")])
    assert workers.commands == []


def test_a_part_that_cannot_begin_is_started_once(workers: Workers, tmp_path: Path) -> None:
    workers.ends = [{"code": 1, "content": DIED}]
    arguments = ["kernels", "--tiny", "--output", str(tmp_path), "--seconds"]
    assert gpu.main([*arguments, "0"]) == 1
    workers.ends, workers.commands = [{"code": None}, {"code": 1}], []
    os.utime(tmp_path / "gpu-kernels-cpu-2030-01-02.json", (0, 0))
    assert gpu.main([*arguments, "100", "--resume"]) == 1
    assert len(workers.commands) == 1


def test_all_keeps_within_its_minutes(workers: Workers, tmp_path: Path) -> None:
    arguments = ["all", "--tiny", "--output", str(tmp_path), "--minutes"]
    assert gpu.main([*arguments, "1"]) == 0
    assert workers.commands == []
    assert gpu.main([*arguments, "3"]) == 0
    for command in workers.commands:
        assert float(command[command.index("--seconds") + 1]) <= 180 - gpu.MARGIN


@pytest.mark.parametrize("end", [{"code": 1, "content": {"failed": ["wrong"]}}, {"code": None}])
def test_a_wrong_smoke_test_ends_all(end: dict[str, Any], workers: Workers, tmp_path: Path) -> None:
    workers.ends = [end]
    assert gpu.main(["all", "--tiny", "--output", str(tmp_path), "--minutes", "60"]) == 1
    assert names(workers) == ["smoke"]


def test_a_part_ends_within_ten_minutes() -> None:
    for seconds in (*(suite.SECONDS[part] for part in ("smoke", *gpu.PARTS)), check.SECONDS, *TUNED.values()):
        assert seconds + gpu.MARGIN < 600


HANG = """
import ctypes, sys
from helpers import benchmarks
import pytest
from bench import run, suite
from bench.engine import loop

def hang(name):
    if name == "b":  # waits for ever, and holds the interpreter: no signal is handled, no other thread runs
        lock, mutex = ctypes.PyDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
        lock(mutex), lock(mutex)

with pytest.MonkeyPatch.context() as patch:
    chosen = benchmarks.some_cases(patch, "abc", hang)
    suite.cases = lambda part, device, tiny: chosen
    loop.CASE_SECONDS, loop.HANG_SECONDS = {"kernels": 0.5}, 0.5
    sys.exit(run.main())
"""


@pytest.mark.slow
def test_a_hang_costs_one_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def start(command: list[str], seconds: float) -> int | None:
        commands.append(command)
        return run_for([sys.executable, "-c", HANG, *command[3:]], seconds, ROOT, variables)

    variables = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    monkeypatch.setattr(gpu, "run_for", start)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["kernels", "--tiny", "--output", str(tmp_path)]) == 1
    content = written(tmp_path)
    assert [name[0] for name in content["done"]] == ["a", "b", "c"]
    (failure,) = content["failed"]
    assert (failure["case"][0], failure["message"]) == ("b", "hung, or ended the process")
    assert [row["case"][0] for row in content["rows"]] == ["a", "c"]
    assert len(commands) == 2

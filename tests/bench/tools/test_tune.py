"""The tuning command: rows that it tries, keeps and writes. Its times wait for a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import ROOT

pytest.importorskip("triton")

from bench.engine import timing
from bench.engine.shapes import TINY
from bench.tools import compile_kernels, tune, workloads
from erniem_fast.kernels import configs

CPU = torch.device("cpu")  # counts as sm_90
FORWARD = ("attention", "fwd", "16x64", 64, False)


@pytest.fixture(autouse=True)
def _untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "TUNED", {})
    monkeypatch.setattr(configs, "FUSED_GELU", {})


def test_every_row_is_compiled_and_has_candidates() -> None:
    entries = list(tune.entries())
    assert len({tune.name_of(entry) for entry in entries}) == len(entries)
    listed = list(compile_kernels.cases(["sm_90"], [tune.DTYPE]))
    for entry in entries:
        row = tune.present(entry, CPU)
        tried = tune.candidates(entry, row)
        assert tried[0] == row
        assert len(set(tried)) == len(tried) > 5
        assert entry[0] == "linear" or any(tune.is_of(entry, case) for case in listed), entry


COMPILE_COSTS = {"attention": 3.5, "rows": 1.5, "linear": 6.0}
"""Seconds of a core to compile a candidate's launch and to read its code.

Assumed: two busy cores that several programs shared took up to 5, 2 and 7 (Triton 3.7.1, sm_90).
"""


def test_each_part_fits_into_its_time() -> None:
    """By the assumed costs of a compilation, on 16 cores."""
    listed = list(compile_kernels.cases(["sm_90"], [tune.DTYPE]))
    assert {entry[0] for entry in tune.entries()} == set(workloads.TUNED)
    for part, seconds in workloads.TUNED.items():
        of_part = [entry for entry in tune.entries() if entry[0] == part]
        launches = 0
        for entry in of_part:
            times = 1 if part == "linear" else sum(tune.is_of(entry, case) for case in listed)
            launches += times * len(tune.candidates(entry, tune.present(entry, CPU)))
        compiling = launches * COMPILE_COSTS[part] / 16
        assert compiling < tune.COMPILING * seconds
        assert compiling + 3 * tune.SECONDS_A_ROW * len(of_part) < seconds < 430


def test_what_the_machine_code_suggests_is_tried() -> None:
    def tried(entry: Any, *fields: str) -> set[tuple[Any, ...]]:
        rows = tune.candidates(entry, tune.present(entry, CPU))
        return {tuple(getattr(row, field, 0) for field in fields) for row in rows}

    half = tried(("attention", "bwd_dkdv", "16x64", 128, True), "block_n", "num_warps", "num_stages")
    assert {(64, 4, 2), (128, 8, 2)} <= half
    for operation in ("layer_norm_fwd", "layer_norm_bwd", "embedding_fwd", "activation_fwd"):
        shapes = tried(("rows", operation, operation.startswith("activation")), "block_m", "num_warps")
        assert {(1, 1), (2, 2), (4, 4), (2, 4)} <= shapes
    linear = tried(("linear", 16, True), "block_m", "block_n", "block_k", "num_stages", "flatten")
    assert {(128, 128, 64, stages, flatten) for stages in (3, 4) for flatten in (False, True)} <= linear
    assert (128, 256, 64, 3, False) in linear
    for entry in (FORWARD, ("attention", "bwd_single_tile", "16x64", 64, True)):
        if "max_registers" in vars(tune.present(entry, CPU)):
            assert {(0,), (128,)} <= tried(entry, "max_registers")


def test_kernels_are_named_as_they_are_launched() -> None:
    from erniem_fast.kernels import activation, attention_backward, attention_forward, embedding, layer_norm, linear

    modules = (activation, attention_backward, attention_forward, embedding, layer_norm, linear)
    names = {name.strip("_") for module in modules for name in vars(module)}
    assert {tune.kernel_of(entry) for entry in tune.entries()} <= names


@pytest.mark.parametrize("entry", list(tune.entries()), ids=tune.name_of)
def test_a_tuned_row_is_the_one_that_is_launched(entry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = tune.candidates(entry, tune.present(entry, CPU))[-1]
    before = {other: tune.present(other, CPU) for other in tune.entries()}
    monkeypatch.setitem(configs.TUNED, "sm_90", {entry: row})
    assert tune.present(entry, CPU) == row
    assert {other: tune.present(other, CPU) for other in before} == before | {entry: row}


SHORT = [("linear", 16, True), ("rows", "activation_bwd", True)]


@pytest.mark.parametrize(
    "entry",
    [entry if entry in SHORT else pytest.param(entry, marks=pytest.mark.slow) for entry in tune.entries()],
    ids=tune.name_of,
)
def test_the_workload_runs(entry: Any, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setattr(workloads, "TOKENS", 8)
    monkeypatch.setattr(workloads, "SIZES", TINY)
    monkeypatch.setattr(workloads, "LENGTHS", dict.fromkeys(workloads.LENGTHS, (8,)))
    monkeypatch.setattr(workloads, "linears", lambda gelu: ((16, 24),))
    calls = list(workloads._calls(entry, device.type))
    assert calls
    workloads.run_all(calls)


def test_fused_gelu_is_timed_against_its_parts(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setattr(workloads, "FUSED_ROWS", (3, 8))
    monkeypatch.setattr(workloads, "SECONDS", 0.0)
    found = workloads.fused_gelu_times(device.type, (TINY,))
    assert [rows for rows, *_ in found] == [3, 8]
    assert all(min(times) > 0 for _, *times in found)


def in_turn(*rounds: dict[int, float]) -> Any:
    """Times of one round after the other; the last one's from there on."""
    left = list(rounds)
    return lambda rows: {row: time for row, time in (left.pop(0) if len(left) > 1 else left[0]).items() if row in rows}


def test_the_fastest_must_be_faster_by_two_percent() -> None:
    assert tune.fastest([1, 2, 3], in_turn({1: 1.0, 2: 0.9, 3: 0.8})) == 3
    assert tune.fastest([1, 2], in_turn({1: 1.0, 2: 0.985})) == 1
    assert tune.fastest([1], in_turn({1: 1.0})) == 1
    assert tune.fastest([1, 2], in_turn({1: 1.0, 2: 0.5}, {1: 1.0, 2: 1.0})) == 1  # one lucky measurement
    assert tune.fastest([1, 2, 3], in_turn({1: 1.0, 3: 0.5})) == 3  # 2 does not run
    assert tune.fastest([1, 2], in_turn({2: 0.5})) == 1
    assert tune.fastest([1, 2], in_turn({})) == 1


def test_only_sound_rows_are_timed_and_all_that_is_found_is_kept(tmp_path: Path) -> None:
    path, row = tmp_path / "tuned.json", tune.present(FORWARD, CPU)
    path.write_text(json.dumps({"sm_80": {"fused_gelu": 7, "rows": []}}), encoding="utf-8")
    good, spilling, best = (configs.AttentionConfig(64, block, 4) for block in (16, 32, 128))
    other = ("linear", 16, False)
    trials = {FORWARD: [row, good, spilling, best], other: tune.candidates(other, tune.present(other, CPU))}
    sound = {tune.Trial(FORWARD, one) for one in (row, good, best)}
    times = {row: 3.0, good: 2.0, best: 1.0}

    sources = {"device": "a GPU", "sources": tune.digest(*tune.SOURCES)}

    def write(name: str) -> None:
        tune.write_tuned(path, "sm_90", sources, name)

    def times_of(entry: Any, rows: list[Any]) -> dict[Any, float]:
        return {row: times[row] for row in rows}

    left_out = tune.tune("sm_90", [FORWARD, other], sound, trials, times_of, write, lambda: False)
    assert left_out == ["linear 16"]  # its present row did not compile
    assert tune.present(FORWARD, CPU) == best
    configs.TUNED.clear()
    configs.load_tuned(path)
    assert tune.present(FORWARD, CPU) == best
    assert configs.FUSED_GELU == {"sm_80": 7}
    content = json.loads(path.read_text(encoding="utf-8"))["sm_90"]
    assert (content["device"], content["tried"]) == ("a GPU", ["attention fwd 16x64 64"])
    assert tune.tried_in(path) == {"attention fwd 16x64 64"}
    configs.TUNED.clear()
    late = tune.tune("sm_90", [FORWARD], sound, trials, times_of, write, lambda: True)
    assert late == ["attention fwd 16x64 64"]
    assert not configs.TUNED


@pytest.mark.parametrize(
    "text", ["", "[]", '{"sm_90": {}}', '{"sm_90": {"fused_gelu": null, "rows": [[["linear", 16, false], {"no": 1}]]}}']
)
def test_a_file_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"tuned\.json must be as `python -m bench\.tools\.tune` writes it"):
        configs.load_tuned(path)


def test_rows_from_which_the_epilogue_wins() -> None:
    assert tune.rows_from_which([(512, 2.0, 1.0), (2048, 0.9, 1.0), (8192, 0.9, 1.0)]) == 2048
    assert tune.rows_from_which([(512, 0.5, 1.0), (2048, 1.1, 1.0), (8192, 0.9, 1.0)]) == 8192
    assert tune.rows_from_which([(512, 0.5, 1.0), (8192, 0.99, 1.0)]) is None


@pytest.mark.slow
def test_a_row_that_spills_is_not_sound() -> None:
    code = """
from bench.tools import tune
from erniem_fast.kernels.configs import AttentionConfig, LinearConfig
columns = ("attention", "bwd_dkdv", "16x64", 128, True)
wide = LinearConfig(256, 256, 64, 4, 3)
for entry, row in (
    (columns, AttentionConfig(32, 128, 8, 2)), (columns, AttentionConfig(128, 128, 4, 2)),
    (("linear", 16, True), LinearConfig(128, 128, 64, 8, 4)), (("linear", 16, True), wide),
):
    print(tune.is_sound(tune.Trial(entry, row), "sm_90"))
"""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False", "True", "False"], done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="would tune for minutes")
def test_candidates_are_timed_in_their_row_s_place(monkeypatch: pytest.MonkeyPatch) -> None:
    row, seen = tune.present(FORWARD, CPU), []
    other = tune.candidates(FORWARD, row)[-1]
    monkeypatch.setattr(tune, "workload", lambda entry, device: (lambda: seen.append(tune.present(FORWARD, CPU)),))

    def in_turns(runs: Any, device: str, seconds: float) -> Any:
        for run in runs.values():
            run()
        return {name: timing.Times([float(name) + 1] * 3) for name in runs if name != "2"}, {"2": "too large"}

    monkeypatch.setattr(tune, "in_turns", in_turns)
    assert tune.time_candidates(FORWARD, [row, other, None], "sm_90") == {row: 1.0, other: 2.0}
    assert seen == [row, other, row], "None is no tuned row"
    assert configs.TUNED == {"sm_90": {}}


def test_a_name_of_no_row_is_an_error(capsys: pytest.CaptureFixture) -> None:
    assert tune.main(["attention", "--only", "nothing"]) == 2
    assert "attention fwd 16x64 64" in capsys.readouterr().err


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture) -> None:
    assert tune.main(["rows"]) == 0
    assert "SKIPPED: no CUDA device" in capsys.readouterr().out

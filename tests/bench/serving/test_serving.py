"""The part of the suite that measures serving: dry run, peers that are missing, tables, goals."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.benchmarks import CEILINGS
from helpers.paths import ROOT

from bench import run, suite
from bench.engine.measure import measure
from bench.engine.registry import Case
from bench.engine.shapes import Setting
from bench.report.goals import GOALS, goals_table, needed
from bench.report.rows import Rows
from bench.report.serving import serving_tables
from bench.serving import BENCHMARKS, forward, setup, texts
from bench.serving.server import LEVELS, SERVER, level

TINY = Setting(tiny=True)
BFLOAT16 = Setting(dtype=torch.bfloat16)


def test_a_peer_that_is_missing_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "find_spec", lambda name: None)
    measured = measure(Case("serving", forward.FORWARD, forward.FORWARD.tiny[0], TINY), CEILINGS)
    skipped = {one["provider"]: one["reason"] for one in measured.skipped}
    assert skipped["openvino"] == "openvino is not installed"
    assert skipped["onnxruntime"] == "onnxruntime is not installed"
    assert {row["provider"] for row in measured.rows} == {"padding-free", "padded"}
    assert not measured.failed
    measured = SERVER.measure(Case("serving", SERVER, SERVER.tiny[0], TINY))  # type: ignore[misc]
    assert measured.skipped[0]["reason"] == "aiohttp is not installed"
    needs = texts.SENTENCES.providers["sentence-transformers, onnx"].refusal(texts.TINY_SHAPE, TINY)
    assert needs == "is not installed: --peer-python names no environment"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--texts", "nowhere", "expected a folder with xquad"), ("--peer-python", "nothing", "is not a program")],
)
def test_a_wrong_option_is_named_at_once(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run.main(["serving", "--tiny", option, value])
    assert f"argument {option}: " in (error := capsys.readouterr().err)
    assert message in error


def test_the_dtype_is_the_processors_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, ours = forward.FORWARD.shapes[0], forward.FORWARD.providers["padding-free"]
    for has_units, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        for module in (setup, texts):
            monkeypatch.setattr(module, "multiplies_bfloat16", lambda has_units=has_units: has_units)
        own = [one for one in (torch.bfloat16, torch.float32) if not texts.needs_own_dtype(shape, Setting(dtype=one))]
        assert own == [dtype]
        assert (ours.refusal(shape, BFLOAT16) is None) == has_units
        assert ours.refusal(shape, replace(BFLOAT16, dtype=torch.float32)) is None


def test_engine_and_bare_forwards_are_of_the_same_batches() -> None:
    measured = measure(Case("serving", texts.ENGINE, texts.TINY_SHAPE, TINY), CEILINGS)
    rows = {row["provider"]: row for row in measured.rows}
    assert not measured.failed
    assert set(rows) == {texts.BARE, texts.OURS}
    assert rows[texts.BARE]["ratio"] == 1
    assert rows[texts.OURS]["sequences"] == 40
    assert rows[texts.OURS]["real_tokens"] > 40
    assert rows[texts.OURS]["real_tokens_per_s"] == pytest.approx(
        rows[texts.OURS]["real_tokens"] / rows[texts.OURS]["time_s"], rel=1e-3
    )
    assert 0 < rows[texts.OURS]["error_share"] <= 1


def test_a_provider_that_is_wrong_gets_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = texts.ENGINE.inputs
    right, _ = inputs(texts.TINY_SHAPE, TINY).expected(0.0)
    monkeypatch.setattr(texts.TextInputs, "expected", lambda self, p: ([right[0] + 1e-3], None))
    measured = measure(Case("serving", texts.ENGINE, texts.TINY_SHAPE, TINY), CEILINGS)
    assert [one["provider"] for one in measured.failed] == [texts.OURS]
    assert [row["provider"] for row in measured.rows] == [texts.BARE]


def a_row(**fields: Any) -> dict[str, Any]:
    return {
        "histogram": "short", "order": "sorted", "real_tokens": 2000, "padded_tokens": 3000, "dtype": "bfloat16",
        "real_tokens_per_s": 12345.0, "sequences": 20_000, "time_s": 0.5, "ratio": 2.0, **fields,
    }  # fmt: skip


def test_tables_and_goals_show_what_was_measured() -> None:
    rows = [
        a_row(operation="batches", shape="short-16-sorted", provider="openvino", ratio=1.5),
        a_row(operation="batches", shape="short-16-sorted", provider="openvino, two streams", ratio=1.25),
        a_row(operation="engine", provider="Encoder.encode", ratio=1.07),
        a_row(operation="sentences", provider="sentence-transformers, torch", ratio=3.0),
        a_row(
            operation="server", provider=level(0.8), seconds=60.2, rate_per_s=80.0, answered_per_s=79.6, failed=1,
            requests=4800, p90_s=0.02, p99_s=0.04, max_s=0.05, server_cores=None, generator_cores=0.25,
        ),
    ]  # fmt: skip
    table = serving_tables(Rows(rows))
    assert "| short texts, sorted | 2,000 of 3,000 | bfloat16 | openvino | 12,345 | 1.50 |" in table
    assert "| 20,000, from strings to vectors | 2,000 | Encoder.encode | bfloat16 | 40,000 | 1.07 |" in table
    assert "| 80% of capacity, 60 s | 80 | 80 | 1 of 4,800 | 500 ms | 20 ms | 40 ms | 50 ms | 2.00 |  | 0.25 |" in table
    goals = goals_table("serving", Rows(rows))
    assert "precision, short texts, sorted | 1.25x | at least 1.3x | no |" in goals
    assert "slower by | 7.00 % | at most 10 % | yes |" in goals
    assert "requests that failed | 1.00 | at most 0 | no |" in goals
    assert "its best of" not in goals, "two backends were not measured"


def test_every_goal_names_a_case_that_is_measured() -> None:
    cases = suite.cases("serving", "cpu", tiny=False)
    for fields in needed("serving"):
        named = [
            case for case in cases
            if all(case.fields.get(key, value) == value for key, value in fields.items() if key != "provider")
        ]  # fmt: skip
        assert named, fields
        providers = [*named[0].benchmark.providers, *map(level, LEVELS)]
        assert fields["provider"] in providers
    assert len(GOALS["serving"]) == 18


@pytest.mark.slow
def test_a_dry_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.run", "serving", "--tiny", "--threads", "1", "--output", str(tmp_path)]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text("utf-8"))
    assert (content["failed"], content["left_out"]) == ([], [])
    assert len(content["done"]) == len(BENCHMARKS)
    timed = {row["provider"] for row in content["rows"]}
    assert {"padding-free", "padded", texts.BARE, texts.OURS, texts.PIPELINE, "128 clients", level(0.8)} <= timed
    assert {one["provider"] for one in content["skipped"]} >= {"sentence-transformers, onnx", "openvino"} - timed
    assert content["texts"] == "the checkout's texts, repeated"
    assert "openvino" in content["versions"]
    assert content["versions"]["onnxruntime"]
    served = [row for row in content["rows"] if row["operation"] == "server"]
    assert all(row["failures"].keys() <= {"429"} for row in served)  # a busy machine's server refuses what is too much
    assert all(row["time_s"] <= row["p99_s"] <= row["max_s"] for row in served)
    assert next(row["ratio"] for row in served if row["provider"] == level(0.1)) >= 1
    assert serving_tables(Rows(content["rows"]))

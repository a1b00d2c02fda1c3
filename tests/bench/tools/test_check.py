"""The check on a GPU runs tests within its time and reports what failed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.tools import check, check_plugin


def lines(*named: tuple[str, str]) -> list[dict[str, Any]]:
    """What the plugin notes of tests that have these outcomes; "" for one that did not end."""
    found: list[dict[str, Any]] = []
    for index, (test, outcome) in enumerate(named):
        found.append({"test": test, "begun": 0.0})
        if outcome:
            found.append({"test": test, "outcome": outcome, "seconds": float(index), "message": "wrong by 3"})
    return found


def test_tests_are_counted_and_failures_named() -> None:
    found = check.report(lines(("one", "passed"), ("two", "failed"), ("two", "passed"), ("three", "skipped")), {}, 1)
    assert {key: found["tests"][key] for key in ("passed", "skipped")} == {"passed": 1, "skipped": 1}
    assert found["tests"]["failed"] == {"two": "wrong by 3"}
    assert list(found["tests"]["slowest"]) == ["three", "two", "one"]
    assert found["left_out"] == ["compute-sanitizer"]
    assert found["done"] == ["one", "three", "two"]


def test_a_killed_run_counts_as_far_as_it_came_and_the_next_one_adds_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "time", lambda: 1000.0)
    running = [{"test": "short", "begun": 1000.0 - check.HUNG_SECONDS / 2}]
    first = check.report([*lines(("one", "passed"), ("stuck", "")), *running], {}, None)
    assert first["tests"]["failed"] == {"stuck": "did not end within 120 s"}
    assert first["left_out"] == ["tests that have not ended", "compute-sanitizer"]
    assert first["done"] == ["one", "stuck"], "what has just begun is begun again"
    second = check.report(lines(("short", "passed")), first, 0)
    assert (second["tests"]["passed"], second["tests"]["failed"]) == (2, first["tests"]["failed"])
    assert second["done"] == ["one", "short", "stuck"]


def test_tests_that_could_not_begin_have_failed() -> None:
    found = check.report([], {}, 3)
    assert found["tests"]["failed"] == {"all": "pytest ended with 3"}
    assert not check.report([], found, 5)["tests"]["failed"], "it was another time"


PROBE = """
import pytest
@pytest.mark.parametrize("number", range(4))
def test_of(number):
    if number == 1:
        pytest.skip("no")
    assert number != 2
"""


@pytest.mark.slow
def test_the_plugin_notes_each_test_and_leaves_out_those_that_are_done(tmp_path: Path) -> None:
    (tmp_path / "test_probe.py").write_text(PROBE, encoding="utf-8")
    log, done = tmp_path / "log", tmp_path / "done.json"
    done.write_text(json.dumps(["test_probe.py::test_of[0]"]), encoding="utf-8")
    variables = check.environment() | {check_plugin.LOG: str(log), check_plugin.DONE: str(done)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", check_plugin.__name__, "-p", "no:cacheprovider", "."]
    assert subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True).returncode == 1
    found = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    outcomes = {line["test"][-2]: line["outcome"] for line in found if "outcome" in line}
    assert outcomes == {"1": "skipped", "2": "failed", "3": "passed"}
    assert sum("begun" in line for line in found) == 3


def test_every_process_begins_with_the_tests_that_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "done").write_text('["3"]', encoding="utf-8")
    monkeypatch.setenv(check_plugin.DONE, str(tmp_path / "done"))
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    items = [SimpleNamespace(nodeid=str(number)) for number in range(10)]
    check_plugin.pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == ["0", "4", "7", "1", "5", "8", "2", "6", "9"]


def test_the_files_that_it_runs_are_there() -> None:
    for name in check.TESTS:
        assert (check.ROOT / "tests" / name).exists(), name


@pytest.mark.slow
def test_the_check_runs_tests_in_processes_of_their_own() -> None:
    before = {"done": ["tests/kernels/test_configs.py::test_every_row_is_launchable"], "tests": {"passed": 1}}
    found = check.run_tests(1000, before, check.TINY_TESTS)
    assert found["tests"]["passed"] > 10
    assert (found["tests"]["failed"], found["left_out"]) == ({}, ["compute-sanitizer"])


class Ahead:
    def __init__(self, *_: Any, **__: Any) -> None:
        self.killed = False

    def kill(self) -> None:
        self.killed = True


@pytest.mark.parametrize(
    ("failed", "sanitizer", "code"),
    [
        ({}, "no errors", 0),
        ({}, "not installed", 0),
        ({}, "Device not supported", 0),
        ({}, "not finished within 9 s", 1),
        ({}, "Invalid read", 1),
        ({"a": "b"}, "no errors", 1),
    ],
)
def test_a_report_is_written_before_the_sanitizer_and_after_it(
    failed: dict[str, str], sanitizer: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"date": "2030-01-02T03:04:05", "processor": "NVIDIA Abacus", "device": "cuda", "sources": "s"}
    told: list[Any] = []

    def run_tests(timeout: float, before: dict[str, Any], tests: Any) -> dict[str, Any]:
        told.append(before.get("done"))
        counted = {"passed": 2, "skipped": 0, "failed": failed}
        return {"tests": counted, "left_out": ["compute-sanitizer"], "done": ["one"]}

    def content() -> dict[str, Any]:
        (path,) = tmp_path.iterdir()
        assert path.name == "gpu-check-abacus-2030-01-02.json"
        return json.loads(path.read_text("utf-8"))

    def run_sanitizer(timeout: float) -> str:
        told.append((content()["compute_sanitizer"], content()["left_out"]))
        return sanitizer

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(check, "describe", lambda device: dict(about))
    monkeypatch.setattr(check, "compile_ahead", lambda *asked: told.append(asked[0]))
    monkeypatch.setattr(check, "run_tests", run_tests)
    monkeypatch.setattr(check, "run_sanitizer", run_sanitizer)
    monkeypatch.setattr(subprocess, "Popen", Ahead)
    assert check.main(tmp_path) == code
    assert told == ["sm_90", None, ("not begun", ["compute-sanitizer"])]
    assert (content()["capability"], content()["compute_sanitizer"]) == ("9.0", sanitizer)
    assert bool(content()["left_out"]) == sanitizer.startswith("not finished")
    assert check.main(tmp_path, resume=True) == code
    assert told[4] == ["one"]
    about["sources"] = "other"
    check.main(tmp_path, resume=True)
    assert None in told[6:], "other code begins anew"


@pytest.mark.parametrize(
    ("printed", "verdict"),
    [("Device not supported", "Device not supported"), ("operation not supported", "operation not supported")],
)
def test_one_message_alone_excuses_the_sanitizer(
    printed: str, verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '{printed}'\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert check.run_sanitizer(60) == verdict

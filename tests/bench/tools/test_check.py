"""The check on a GPU runs tests within its time and reports what failed."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.tools import check

REPORT = """<testsuites><testsuite><testcase classname="tests.test_gpu" name="one"/>
<testcase classname="tests.test_gpu" name="two"><failure message="wrong by 3">trace</failure></testcase>
<testcase classname="tests.test_gpu" name="three"><skipped/></testcase></testsuite></testsuites>"""


class Process:
    """A pytest that writes a report or none, and ends in time or not."""

    pid, returncode = 12345, 3

    def __init__(self, report: str | None = REPORT, in_time: bool = True) -> None:
        self.report, self.in_time, self.told = report, in_time, []

    def __call__(self, command: list[str], **options: Any) -> "Process":
        self.command, self.options = command, options
        if self.report is not None:
            found = [one.partition("=")[2] for one in command if one.startswith("--junitxml=")]
            for path in found:
                Path(path).write_text(self.report, encoding="utf-8")
        return self

    def wait(self, timeout: float) -> None:
        self.told.append(timeout)
        if not self.in_time:
            raise subprocess.TimeoutExpired("pytest", timeout)

    def send_signal(self, number: int) -> None:
        self.told.append(number)

    def kill(self) -> None:
        self.told.append("killed")


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "killpg", lambda *group: found.append(group))
    return found


def run_with(process: Process, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(subprocess, "Popen", process)
    return check.run_tests(100.0)


def test_tests_are_counted_and_failures_named(monkeypatch: pytest.MonkeyPatch, killed: list[Any]) -> None:
    process = Process()
    counted = run_with(process, monkeypatch)
    assert {key: counted[key] for key in ("passed", "skipped")} == {"passed": 1, "skipped": 1}
    assert counted["failed"] == {"tests.test_gpu::two": "wrong by 3"}
    assert process.told == [100.0]
    assert killed == [(process.pid, signal.SIGKILL)], "workers end with it"
    assert process.options["start_new_session"]
    assert [name for name in process.command if name.startswith("tests/")] == [f"tests/{one}" for one in check.TESTS]


def test_tests_that_do_not_end_are_interrupted_and_count_as_far_as_they_came(
    monkeypatch: pytest.MonkeyPatch, killed: list[Any]
) -> None:
    process = Process(in_time=False)
    counted = run_with(process, monkeypatch)
    assert counted["failed"] == {"tests.test_gpu::two": "wrong by 3", "all": "did not end within 100 s"}
    assert process.told == [100.0, signal.SIGINT, 20]
    assert len(killed) == 1


def test_tests_that_leave_no_report_have_failed(monkeypatch: pytest.MonkeyPatch, killed: list[Any]) -> None:
    counted = run_with(Process(report=None), monkeypatch)
    assert (counted["passed"], counted["failed"]) == (0, {"all": "pytest ended with 3 and left no report"})


def test_the_files_that_it_runs_are_there() -> None:
    for name in check.TESTS:
        assert (check.ROOT / "tests" / name).exists(), name


@pytest.mark.slow
def test_the_check_runs_tests_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "TESTS", ("test_imports.py",))
    counted = check.run_tests(1000)
    assert counted["passed"] > 20
    assert not counted["failed"]


@pytest.mark.parametrize(
    ("failed", "sanitizer", "code"),
    [({}, "no errors", 0), ({}, "not installed", 0), ({}, "Invalid read", 1), ({"a": "b"}, "no errors", 1)],
)
def test_a_report_is_written_and_the_exit_code_says_what_it_found(
    failed: dict[str, str], sanitizer: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"date": "2030-01-02T03:04:05", "processor": "NVIDIA Abacus"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(check, "describe", lambda device: about)
    monkeypatch.setattr(check, "run_tests", lambda timeout: {"passed": 2, "failed": failed})
    monkeypatch.setattr(check, "run_sanitizer", lambda timeout: sanitizer)
    monkeypatch.setattr(subprocess, "Popen", Process())
    assert check.main(tmp_path) == code
    (path,) = tmp_path.iterdir()
    assert path.name == "gpu-check-abacus-2030-01-02.json"
    content = json.loads(path.read_text("utf-8"))
    assert (content["capability"], content["compute_sanitizer"]) == ("9.0", sanitizer)

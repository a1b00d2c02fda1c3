"""The loop over the cases keeps within its time, records what breaks, and leaves a whole file."""

import faulthandler
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.benchmarks import Clock, some_cases

from bench.engine import loop
from bench.engine.loop import LostContextError, OutOfTimeError, run, time_limit
from bench.engine.registry import Case
from bench.engine.results import Measured, ResultFile

ABOUT = {"device": "cpu", "commit": "c", "dirty": False, "sources": "s", "date": "d"}


def new_file(folder: Path) -> ResultFile:
    return ResultFile.new(folder / "result.json", dict(ABOUT))


def content_of(file: ResultFile) -> dict[str, Any]:
    return json.loads(file.path.read_text("utf-8"))


def test_what_does_not_fit_is_listed_and_a_later_run_goes_on_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, done = Clock(), []

    def slow(name: str) -> None:
        done.append(name)
        clock.advance(6)

    chosen = some_cases(monkeypatch, "abcd", slow)
    file = new_file(tmp_path)
    run(file, chosen, 10.0, True, clock)
    content = content_of(file)
    assert content["done"] == [case.name for case in chosen[:2]]
    assert content["left_out"] == [case.name for case in chosen[2:]]
    assert content["runs"][0]["seconds"] == 12
    again = ResultFile(file.path, content)
    about = ABOUT | {"date": "later", "commit": "another", "dirty": True}
    assert not again.differences(about)
    assert again.differences(about | {"sources": "other"}) == ["sources"]
    assert not again.is_whole
    run(again, chosen, 100.0, True, clock)
    content = content_of(file)
    assert done == list("abcd")
    assert content["left_out"] == []
    assert [row["run"] for row in content["rows"]] == [0, 0, 1, 1]
    assert len(content["runs"]) == 2
    assert again.is_whole


def test_a_run_says_what_the_machine_reached_and_who_else_used_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, others = Clock(), Clock()

    def busy(name: str) -> None:
        clock.advance(10)
        others.advance(4)

    monkeypatch.setattr(loop, "others_seconds", others)
    file = new_file(tmp_path)
    run(file, some_cases(monkeypatch, "a", busy), 100.0, True, clock)
    (about,) = content_of(file)["runs"]
    assert min(about["ceilings"].values()) > 0
    assert about["others_busy_cores"] == 0.4
    assert {"clocks_before", "clocks_after", "date"} <= about.keys()


def test_an_interrupted_run_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(name: str) -> None:
        if name == "b":
            raise KeyboardInterrupt

    chosen = some_cases(monkeypatch, "abc", interrupt)
    file = new_file(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(file, chosen, 60.0, True)
    content = content_of(file)
    assert content["done"] == [chosen[0].name]
    assert len(content["rows"]) == 1
    assert content["left_out"] == [chosen[1].name, chosen[2].name]
    assert content["under_way"] is None, "it is not the case's fault"


def test_a_case_that_is_broken_off_is_left_for_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock()

    def hang(name: str) -> None:
        if name == "b":
            clock.advance(100)
            signal.raise_signal(signal.SIGALRM)

    chosen = some_cases(monkeypatch, "abc", hang)
    file = new_file(tmp_path)
    run(file, chosen, 10.0, True, clock)
    content = content_of(file)
    assert content["done"] == [chosen[0].name]
    assert content["left_out"] == [chosen[1].name, chosen[2].name]
    assert content["failed"] == []


def test_a_case_that_alone_takes_longer_than_the_time_is_broken_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = Clock()

    def hang(name: str) -> None:
        clock.advance(100)
        try:
            signal.raise_signal(signal.SIGALRM)
        except Exception:
            pytest.fail("a provider's handler must not catch it")

    file = new_file(tmp_path)
    run(file, some_cases(monkeypatch, "b", hang), 10.0, True, clock)
    (failure,) = file.content["failed"]
    assert failure["message"].startswith("broken off: ")


def test_the_time_limit_sets_an_alarm_and_takes_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(1000.0):
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
        with pytest.raises(OutOfTimeError):
            signal.raise_signal(signal.SIGALRM)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert signal.getsignal(signal.SIGALRM) is before
    asked = []
    monkeypatch.setattr(signal, "setitimer", lambda which, seconds: asked.append(seconds))
    with time_limit(-5.0):
        pass
    assert asked == [0.01, 0], "a time that is over still sets an alarm: 0 would set none"


def test_a_process_that_does_not_come_back_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(
        faulthandler, "dump_traceback_later", lambda seconds, **more: told.append((seconds, more["exit"]))
    )
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: told.append("cancelled"))
    with time_limit(1000.0):
        pass
    assert told == [(1000 + loop.HANG_SECONDS, True), "cancelled"]


def test_a_context_that_does_not_answer_ends_the_process_in_its_case(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A case is broken off while the device goes on with it: the next wait for the device has no end."""
    told, file, under_way = [], new_file(tmp_path), []

    def asked(device: str) -> bool:
        under_way.append((content_of(file)["under_way"][0], told[-1]))
        return False

    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: told.append(seconds))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: None)
    monkeypatch.setattr(loop, "context_is_lost", asked)
    run(file, some_cases(monkeypatch, "a", lambda name: signal.raise_signal(signal.SIGALRM)), 60.0, True)
    assert under_way == [("a", loop.HANG_SECONDS)]


def test_a_case_that_ended_the_process_has_failed_and_is_not_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen, file = [], new_file(tmp_path)

    def look(name: str) -> None:
        content = content_of(file)
        seen.append((content["under_way"][0], [other[0] for other in content["left_out"]]))

    chosen = some_cases(monkeypatch, "abc", look)
    run(file, chosen, 60.0, True)
    assert seen == [("a", ["b", "c"]), ("b", ["c"]), ("c", [])]
    content = content_of(file)
    assert content["under_way"] is None
    ended = content | {"under_way": chosen[1].name, "done": [chosen[0].name], "rows": [], "left_out": [chosen[2].name]}
    again = ResultFile(file.path, ended)
    assert not again.is_whole
    seen.clear()
    run(again, chosen, 60.0, True)
    assert [name for name, _ in seen] == ["c"]
    assert content_of(again)["failed"] == [
        {"case": chosen[1].name, "provider": "all", "message": "hung, or ended the process"}
    ]


def test_a_slow_case_is_broken_off_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def hang(name: str) -> None:
        if name == "b":
            signal.raise_signal(signal.SIGALRM)

    file = new_file(tmp_path)
    run(file, some_cases(monkeypatch, "abc", hang), 1000.0, True, Clock())
    assert [name[0] for name in file.content["done"]] == ["a", "b", "c"]
    (failure,) = file.content["failed"]
    assert failure["message"] == f"broken off: it takes longer than {loop.CASE_SECONDS['kernels']:.0f} s"


def test_clocks_are_asked_now_and_then(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock, asked = Clock(), []
    monkeypatch.setattr(loop, "nvidia_smi", lambda *fields: asked.append(clock()))
    chosen = some_cases(monkeypatch, "abcdefghijkl", lambda name: clock.advance(4))
    run(new_file(tmp_path), chosen, 1000.0, True, clock)
    assert asked == [0, 16, 32, 48]


def test_each_case_gets_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock, asked = Clock(), []
    chosen = some_cases(monkeypatch, "ab", lambda name: clock.advance(6))
    limit = loop.time_limit

    def recorded(seconds: float) -> Any:
        asked.append(seconds)
        return limit(1000.0)

    monkeypatch.setattr(loop, "time_limit", recorded)
    run(new_file(tmp_path), chosen, 10.0, True, clock)
    assert asked == [10 + loop.GRACE_SECONDS, 4 + loop.GRACE_SECONDS]


def test_a_lost_context_ends_the_run_after_its_case_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The case that broke it is done, and charged to the provider that came first."""
    lost = False

    def measured(case: Case, *_: Any) -> Measured:
        nonlocal lost
        lost = case.benchmark.name == "b"
        broken = "AcceleratorError: CUDA error: an illegal memory access was encountered"
        messages = {"large": "OutOfMemoryError: CUDA out of memory", "peer": broken, "erniem_fast": broken}
        failed = [{"case": case.name, "provider": name, "message": text} for name, text in messages.items()]
        return Measured(failed=failed if lost else [])

    chosen = some_cases(monkeypatch, "abc", lambda name: None)
    monkeypatch.setattr(loop, "measure", measured)
    monkeypatch.setattr(loop, "context_is_lost", lambda device: lost)
    file = new_file(tmp_path)
    with pytest.raises(LostContextError, match="lost in b/tiny"):
        run(file, chosen, 60.0, True)
    content = content_of(file)
    assert content["done"] == [chosen[0].name, chosen[1].name]
    assert content["left_out"] == [chosen[2].name]
    assert [failure["provider"] for failure in content["failed"]] == ["large", "peer"]


def test_a_context_is_lost_where_synchronizing_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert not loop.context_is_lost("cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    assert loop.context_is_lost("cuda")


def test_an_error_of_the_suite_itself_does_not_end_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def out_of_memory(device: str) -> None:
        raise torch.cuda.OutOfMemoryError("no memory for the suite")

    chosen = some_cases(monkeypatch, "ab", lambda name: None)
    monkeypatch.setattr(loop, "release", out_of_memory)
    file = new_file(tmp_path)
    run(file, chosen, 60.0, True)
    assert file.content["done"] == [case.name for case in chosen]
    assert {failure["message"] for failure in file.content["failed"]} == {"OutOfMemoryError: no memory for the suite"}


def test_a_write_that_fails_leaves_the_file_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = new_file(tmp_path)
    file.write()
    before = file.path.read_text("utf-8")

    def full(*_: Any) -> None:
        raise OSError("no space left")

    file.begin({})
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        file.write()
    assert file.path.read_text("utf-8") == before
    assert list(tmp_path.iterdir()) == [file.path]

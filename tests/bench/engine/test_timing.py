"""Providers take turns; no test depends on how long anything takes."""

from typing import Any

import pytest
import torch
from helpers.benchmarks import Clock

from bench.engine import timing


def test_turns_are_taken_and_rounds_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    times, failures = timing.in_turns(runs, "cpu", 0.0)
    assert not failures
    assert calls == ["a", "b"] * 3, "once before the rounds, and two rounds"
    assert len(times["a"].device_s) == len(times["a"].host_s) == len(times["b"].wall_s) == 2
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    fast = timing.in_turns({"a": lambda: clock.advance(1e-6)}, "cpu", 10.0)[0]["a"]
    assert len(fast.device_s) == timing.MAX_ROUNDS
    slow = timing.in_turns({"a": lambda: clock.advance(0.5)}, "cpu", 0.001)[0]["a"]
    assert len(slow.device_s) == timing.MIN_ROUNDS
    assert slow.host_s == slow.device_s == [0.5] * timing.MIN_ROUNDS
    some = timing.in_turns({"a": lambda: clock.advance(0.5)}, "cpu", 20.0, cold=False)[0]["a"]
    assert len(some.device_s) == 39, "as many as fit into the seconds"


def test_the_device_is_timed_with_a_cold_cache_and_a_full_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            told.append("event")

        def elapsed_time(self, end: "Event") -> float:
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: told.append(("wait", cycles)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: told.append("done"))
    flushed = torch.ones(4, dtype=torch.int32)

    def run() -> None:
        told.append(("run", int(flushed.sum())))

    assert timing._device(run, flushed, 1e-3) == 2e-3
    assert told == [("wait", int(2e-3 * timing.CYCLES_PER_S)), "event", ("run", 0), "event", "done"]


def test_ceilings_are_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        timing, "in_turns", lambda runs, *_: ({name: timing.Times([2.0, 4.0, 3.0]) for name in runs}, {})
    )
    reached = timing.ceilings("cpu", tiny=True)
    assert reached == {"matrix_tflops": 2 * 128**3 / 3 / 1e12, "copy_gbps": 2 * 2**20 / 3 / 1e9}
    monkeypatch.setattr(timing, "in_turns", lambda runs, *_: ({}, {"copy": "no memory"}))
    with pytest.raises(RuntimeError, match="no memory"):
        timing.ceilings("cpu", tiny=True)

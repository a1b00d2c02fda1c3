"""Small benchmarks, cases and results for tests of the suite."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.engine import loop
from bench.engine.registry import Benchmark, Case, Prepared
from bench.engine.results import Measured
from bench.engine.shapes import TINY, Setting, batch_of
from bench.engine.work import Work

CEILINGS = {"matrix_tflops": 1.0, "copy_gbps": 1.0}
SHAPE = batch_of(9, 3, 1, 3, name="tiny", sizes=TINY)
TINY_SETTING = Setting(tiny=True)


class Inputs:
    """Inputs whose right result is three ones."""

    work = Work(10, 20)
    facts: dict[str, Any] = {"fact": 1}

    def expected(self, dropout_p: float) -> tuple[list[Tensor], None]:
        return [torch.ones(3, dtype=torch.float64)], None


def a_benchmark(compute: Callable[[], Tensor], results: Callable[[], list[Tensor]] | None = None) -> Benchmark:
    """Benchmark of a right provider and of `compute`, whose results are `results` or what it returns."""
    benchmark = Benchmark("double", lambda *_: Inputs(), (SHAPE,), (SHAPE,), baseline="right")
    benchmark.provider("right")(lambda _: Prepared(lambda: None, lambda: [torch.ones(3)]))
    benchmark.provider("other")(lambda _: Prepared(compute, results or (lambda: [compute()])))
    return benchmark


def some_cases(monkeypatch: pytest.MonkeyPatch, names: str, act: Callable[[str], None]) -> list[Case]:
    """Cases of those names; measuring one calls `act` with its name."""

    def fake(case: Case, ceilings: dict[str, float]) -> Measured:
        act(case.benchmark.name)
        return Measured(rows=[{"case": case.name, "provider": "p", "time_s": 1.0, "host_s": 1.0, "ratio": None}])

    monkeypatch.setattr(loop, "measure", fake)
    monkeypatch.setattr(loop, "release", lambda device: None)  # collecting garbage takes long in a test session
    benchmarks = [Benchmark(name, lambda *_: Inputs(), (), ()) for name in names]
    return [Case("kernels", benchmark, SHAPE, TINY_SETTING) for benchmark in benchmarks]


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

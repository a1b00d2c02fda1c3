"""Times the cases: pytest bench/test_cases.py [--only PATTERN] [--tiny]. `bench.run` writes the results down."""

from functools import lru_cache
from time import perf_counter
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from .registry import Case, Operation, Prepared
from .shapes import Setting, Shape

SEED = 0


@lru_cache(maxsize=1)
def shared(operation: Operation, shape: Shape, setting: Setting) -> tuple[Any, Tensor]:
    """What the providers of an operation on a shape share: their inputs and the rows that are right."""
    torch.manual_seed(SEED)
    inputs = operation.inputs(shape, setting)
    oracle = operation.providers[operation.oracle].build(inputs)
    assert oracle.rows is not None
    with torch.inference_mode():
        return inputs, oracle.rows()


def max_error(case: Case, prepared: Prepared, expected: Tensor, dtype: torch.dtype) -> float | None:
    """Greatest difference from the oracle, which must be within the tolerance; None for a bound."""
    if prepared.rows is None:
        return None
    with torch.inference_mode():
        rows = prepared.rows()
    assert rows.shape == expected.shape
    error = float((rows.float() - expected.float()).abs().max())
    tolerance = case.operation.max_error(dtype)
    assert error <= tolerance, f"{case.name}: error {error:.2g}, at most {tolerance:.2g}; its time is not written"
    return error


def test_case(case: Case, setting: Setting, benchmark: BenchmarkFixture) -> None:
    operation, shape = case.operation, case.shape
    inputs, expected = shared(operation, shape, setting)
    prepared = case.provider.build(inputs)
    error = max_error(case, prepared, expected, setting.dtype)
    baseline = operation.providers[operation.baseline].build(inputs)
    rounds = 2 if benchmark.disabled or shape is operation.tiny else operation.rounds
    baseline_times: list[float] = []

    def run(what: Prepared) -> None:
        with torch.inference_mode(not operation.grad):
            what.run()
        if setting.device == "cuda":
            torch.cuda.synchronize()

    def time_baseline() -> None:
        """Comes before every round: provider and baseline take turns, and share what disturbs the machine."""
        begin = perf_counter()
        run(baseline)
        baseline_times.append(perf_counter() - begin)

    memory = None if prepared.memory is None else dict(prepared.memory())
    benchmark.group = f"{operation.name}/{shape.name}"
    is_baseline = case.provider.name == operation.baseline
    benchmark.pedantic(
        run, args=(prepared,), setup=None if is_baseline else time_baseline, rounds=rounds, warmup_rounds=1
    )
    benchmark.extra_info.update(
        operation=operation.name,
        shape=shape.name,
        provider=case.provider.name,
        dtype=str(setting.dtype).removeprefix("torch."),
        baseline=operation.baseline,
        baseline_times=baseline_times[-rounds:],
        real_tokens=shape.real_tokens,
        padded_tokens=shape.padded_tokens,
        max_error=error,
        memory=memory,
    )

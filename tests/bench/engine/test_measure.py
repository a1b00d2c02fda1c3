"""A case is measured: what is wrong, raises or cannot run is recorded, and the rest goes on."""

from typing import Any

import pytest
import torch
from helpers.benchmarks import CEILINGS, SHAPE, TINY_SETTING, Inputs, a_benchmark
from torch import Tensor

from bench.engine import measure as module
from bench.engine.measure import measure
from bench.engine.registry import Benchmark, Case, Prepared
from bench.engine.results import Measured
from bench.engine.shapes import Setting, Shape
from bench.engine.work import Work


def measured_with(benchmark: Benchmark) -> Measured:
    return measure(Case("kernels", benchmark, SHAPE, TINY_SETTING), CEILINGS)


@pytest.mark.parametrize("wrong", [torch.ones(3) + 1e-3, torch.full((3,), float("nan")), torch.ones(2)])
def test_a_wrong_result_gets_no_figure(wrong: Tensor) -> None:
    measured = measured_with(a_benchmark(lambda: wrong))
    assert [row["provider"] for row in measured.rows] == ["right"]
    (failure,) = measured.failed
    assert failure["provider"] == "other"
    assert "WrongResultError" in failure["message"]


def test_a_figure_comes_with_its_check_its_facts_and_its_rates() -> None:
    measured = measured_with(a_benchmark(lambda: torch.ones(3) + 1e-7))
    right, other = measured.rows
    assert (right["ratio"], right["fact"], right["checked"]) == (1.0, 1, "output")
    assert other["max_error"] == pytest.approx(1e-7, rel=0.2)
    assert 0 < other["error_share"] < 1
    assert other["rounds"] == 2
    assert 0 <= other["min_s"] <= other["p10_s"] <= other["time_s"] <= other["p90_s"]
    assert other["gbps"] == pytest.approx(20 / other["time_s"] / 1e9, rel=1e-3)
    assert other["share_of_ceiling"] == pytest.approx(max(10 / 1e12, 20 / 1e9) / other["time_s"], rel=1e-3)
    assert other["real_tokens_per_s"] == pytest.approx(SHAPE.real_tokens / other["time_s"], rel=1e-3)


def test_a_bound_is_not_compared_and_has_work_of_its_own() -> None:
    benchmark = a_benchmark(lambda: torch.ones(3))
    benchmark.provider("bound")(lambda _: Prepared(lambda: None, None, work=Work(1, 2)))
    bound = measured_with(benchmark).rows[-1]
    assert (bound["checked"], bound["max_error"]) == ("not compared", None)
    assert (bound["flops"], bound["bytes"]) == (1, 2)


def test_a_provider_that_raises_is_recorded_and_the_rest_goes_on() -> None:
    def out_of_memory() -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    measured = measured_with(a_benchmark(out_of_memory))
    assert [row["provider"] for row in measured.rows] == ["right"]
    assert measured.failed[0]["message"] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB"
    calls = []

    def raises_later() -> Tensor:
        calls.append(0)
        if len(calls) > 2:
            raise RuntimeError("later")
        return torch.ones(3)

    measured = measured_with(a_benchmark(raises_later, lambda: [torch.ones(3)]))
    assert [row["provider"] for row in measured.rows] == ["right"]
    assert measured.failed[0]["message"] == "RuntimeError: later"


def test_a_provider_that_cannot_run_is_skipped_with_its_reason() -> None:
    benchmark = a_benchmark(lambda: torch.ones(3))
    benchmark.provider("gpu", devices=("cuda",))(lambda _: pytest.fail("built"))
    benchmark.provider("picky", needs=lambda shape, setting: f"not for {shape.name}")(lambda _: pytest.fail("built"))
    skipped = {one["provider"]: one["reason"] for one in measured_with(benchmark).skipped}
    assert skipped == {"gpu": "runs on cuda only", "picky": "not for tiny"}


def test_inputs_that_cannot_be_made_fail_the_case_alone() -> None:
    def make(shape: Shape, setting: Setting) -> Inputs:
        raise torch.OutOfMemoryError("too long")

    assert measured_with(Benchmark("double", make, (SHAPE,), (SHAPE,))).failed[0]["provider"] == "all"


def test_kernels_are_timed_cold_and_models_from_call_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(runs: Any, device: str, seconds: float, cold: bool, rounds: int | None) -> tuple[dict, dict]:
        asked.append((seconds, cold))
        return {}, {}

    monkeypatch.setattr(module, "in_turns", fake)
    benchmark = a_benchmark(lambda: torch.ones(3))
    for part in module.SECONDS:
        measure(Case(part, benchmark, SHAPE, Setting()), CEILINGS)
    measure(Case("models", benchmark, SHAPE, TINY_SETTING), CEILINGS)
    seconds = module.SECONDS
    cold = {"cpu": False, "families": False, "serving": False, "smoke": True, "kernels": True, "models": False}
    assert asked == [*((seconds[part], cold[part]) for part in seconds), (0.0, False)]

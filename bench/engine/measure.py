"""Measuring one case: check every provider, then time the right ones in turns."""

from statistics import median, quantiles
from typing import Any

import torch

from . import closeness
from .registry import Case, Inputs, Prepared, Provider
from .results import Measured
from .shapes import FORWARD
from .timing import Times, in_turns, message
from .work import Work

SEED = 0
SECONDS = {"cpu": 3.0, "families": 40.0, "serving": 10.0, "smoke": 0.1, "kernels": 0.6, "models": 2.5}
"""Seconds of timing per case, checks excluded; 4 rounds are timed in any case."""


def measure(case: Case, ceilings: dict[str, float]) -> Measured:
    """Check every provider of a case, then time those that are right, in turns.

    Args:
        case: the case; kernels are timed with a cold cache, models from call to end.
        ceilings: rates that the machine reaches, as `timing.ceilings` measures them.
    """
    if case.benchmark.measure is not None:
        return case.benchmark.measure(case)
    measured, setting = Measured(), case.setting
    torch.manual_seed(SEED)
    try:
        inputs = case.benchmark.inputs(case.shape, setting)
    except Exception as error:
        measured.failed.append({"case": case.name, "provider": "all", "message": message(error)})
        return measured
    right: dict[str, tuple[Prepared, dict[str, Any]]] = {}
    for provider in case.providers():
        about = {"case": case.name, "provider": provider.name}
        refusal = provider.refusal(case.shape, setting)
        if refusal is not None:
            measured.skipped.append(about | {"reason": refusal})
            continue
        try:
            right[provider.name] = _check(provider, inputs, case)
        except Exception as error:  # out of memory, too: the others go on
            measured.failed.append(about | {"message": message(error)})
    runs = {name: prepared.run for name, (prepared, _) in right.items()}
    seconds = 0.0 if setting.tiny else SECONDS[case.part]
    cold, rounds = case.part in ("smoke", "kernels"), case.benchmark.rounds
    times, failures = in_turns(runs, setting.device, seconds, cold, rounds)
    measured.failed += [{"case": case.name, "provider": name, "message": text} for name, text in failures.items()]
    baseline = times.get(case.benchmark.baseline)
    for name, taken in times.items():
        prepared, checked = right[name]
        row = _row(case, case.benchmark.providers[name], taken, baseline) | dict(inputs.facts)
        row["real_tokens_per_s"] = row["real_tokens"] / row["time_s"]
        row |= checked | _shares(row["time_s"], prepared.work or inputs.work, ceilings)
        measured.rows.append(_rounded(row))
    return measured


def _check(provider: Provider, inputs: Inputs, case: Case) -> tuple[Prepared, dict[str, Any]]:
    """Build a provider, compare its results with the oracle's and measure its memory.

    Raises:
        WrongResultError: a result is wrong.
    """
    prepared = provider.build(inputs)
    setting = case.setting
    checked: dict[str, Any] = {"checked": "not compared", "max_error": None, "error_share": None}
    if prepared.results is not None:
        same_mask = prepared.same_mask and setting.dropout_p > 0
        close = closeness.compare(prepared.results(), *inputs.expected(setting.dropout_p if same_mask else 0.0))
        compared = "output" if setting.passes == FORWARD else "output and gradients"
        mask = ", with the oracle's mask" if same_mask else ", without dropout" if setting.dropout_p else ""
        checked = {"checked": compared + mask, "max_error": close.error, "error_share": close.share}
    if prepared.memory is not None:
        checked["memory_bytes"] = dict(prepared.memory())
    return prepared, checked


def _row(case: Case, provider: Provider, taken: Times, baseline: Times | None) -> dict[str, Any]:
    shape, times = case.shape, taken.device_s
    tenths = quantiles(times, n=10, method="inclusive")
    ratio = None
    if baseline is not None:
        ratio = median(one / other for one, other in zip(times, baseline.device_s, strict=False))
    return {
        "case": case.name, "provider": provider.name, "note": provider.note, **case.fields,
        "histogram": shape.histogram, "order": shape.order, "sequences": sum(map(len, shape.batches)),
        "batches": len(shape.batches), "real_tokens": shape.real_tokens, "padded_tokens": shape.padded_tokens,
        "rounds": len(times),
        "time_s": median(times), "min_s": min(times), "p10_s": tenths[0], "p90_s": tenths[-1],
        "host_s": median(taken.host_s), "wall_s": median(taken.wall_s), "baseline": case.benchmark.baseline,
        "ratio": ratio,
    }  # fmt: skip


def _shares(seconds: float, amount: Work, ceilings: dict[str, float]) -> dict[str, Any]:
    """Rates, and their shares of the measured ceilings; the last share is that of the nearer one."""
    tflops, gbps = amount.flops / seconds / 1e12, amount.bytes / seconds / 1e9
    floor = amount.floor_s(ceilings["matrix_tflops"] * 1e12, ceilings["copy_gbps"] * 1e9)
    return {
        "flops": amount.flops, "bytes": amount.bytes, "tflops": tflops, "gbps": gbps,
        "share_of_matrix_rate": tflops / ceilings["matrix_tflops"], "share_of_copy_rate": gbps / ceilings["copy_gbps"],
        "share_of_ceiling": floor / seconds,
    }  # fmt: skip


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}

"""Which cases the GPU suite has, the most important first, and how one of them is measured."""

import gc
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from statistics import median, quantiles
from typing import Any

import torch

from . import closeness, gpu_models, kernel_cases, work
from .gpu_shapes import BASE_MODEL, DROPOUT_P, TINY_UNIFORM
from .registry import Operation, Prepared, Provider
from .shapes import Setting, Shape
from .timing import Times, in_turns, message

SEED = 0
SECONDS_A_CASE = {"kernels": 0.6, "models": 2.5}
"""Of timing alone."""
VARIANTS = (
    (work.FORWARD, 0.0), (work.BOTH, 0.0), (work.BOTH, DROPOUT_P), (work.BACKWARD, 0.0), (work.FORWARD, DROPOUT_P),
    (work.BACKWARD, DROPOUT_P),
)  # fmt: skip


@dataclass(frozen=True)
class GpuCase:
    """One operation on one shape in one setting, by all its providers in turns."""

    part: str
    operation: Operation
    shape: Shape
    setting: Setting

    @property
    def name(self) -> str:
        setting = self.setting
        dtype = str(setting.dtype).removeprefix("torch.")
        sizes = f"{self.shape.sizes.num_layers}x{self.shape.sizes.hidden_size}"
        return f"{self.operation.name}/{self.shape.name}/{sizes}/{dtype}/{setting.passes}/dropout {setting.dropout_p:g}"


@dataclass
class Measured:
    """What came of a case.

    Attributes:
        rows: a figure each.
        failed: providers that raised or were wrong, and why.
        skipped: providers that can't run, and why.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)


def cases(part: str, device: str, tiny: bool) -> list[GpuCase]:
    """All cases of a part, the most important first."""
    return list(_kernels(device, tiny) if part == "kernels" else _models(device, tiny))


def _kernels(device: str, tiny: bool) -> Iterator[GpuCase]:
    setting = Setting(device, torch.float32 if device == "cpu" else torch.bfloat16)
    if tiny:
        for operation in kernel_cases.OPERATIONS:
            for passes, dropout_p in VARIANTS[:4]:
                varied = replace(setting, passes=passes, dropout_p=dropout_p)
                yield GpuCase("kernels", operation, operation.tiny, varied)
        yield GpuCase("kernels", kernel_cases.ATTENTION, TINY_UNIFORM, setting)
        return
    for rank in range(max(len(operation.shapes) for operation in kernel_cases.OPERATIONS)):
        for operation in kernel_cases.OPERATIONS:
            for passes, dropout_p in VARIANTS if rank < len(operation.shapes) else ():
                varied = replace(setting, passes=passes, dropout_p=dropout_p)
                yield GpuCase("kernels", operation, operation.shapes[rank], varied)


def _models(device: str, tiny: bool) -> Iterator[GpuCase]:
    bf16, fp16 = Setting(device, torch.bfloat16), Setting(device, torch.float16)
    inference, training, latency, adamw = gpu_models.OPERATIONS

    def of(operation: Operation, base: bool, setting: Setting, *ranks: int) -> Iterator[GpuCase]:
        if operation.grad:
            setting = replace(setting, passes=work.BOTH, dropout_p=DROPOUT_P)
        shapes = [shape for shape in operation.shapes if (shape.sizes == BASE_MODEL) == base]
        for shape in [operation.tiny] if tiny else [shapes[rank] for rank in ranks]:
            yield GpuCase("models", operation, shape, setting)

    if tiny:
        for operation in gpu_models.OPERATIONS:
            yield from of(operation, True, bf16)
        return
    yield from of(inference, True, bf16, 0, 1, 2, 3)
    yield from of(training, True, bf16, 0, 1)
    yield from of(inference, False, bf16, 0, 1)
    yield from of(latency, True, bf16, 0, 1, 2)
    yield from of(inference, True, bf16, 4, 5)
    yield from of(training, False, bf16, 1)
    yield from of(adamw, True, bf16, 1)
    yield from of(inference, True, fp16, 0, 1)
    yield from of(inference, False, fp16, 0)
    yield from of(training, True, fp16, 1)
    yield from of(latency, False, bf16, 0, 1, 2)
    yield from of(inference, False, bf16, 2, 3, 4, 5)
    yield from of(adamw, False, bf16, 1)
    yield from of(training, False, fp16, 1)
    yield from of(training, False, bf16, 0)


def measure(case: GpuCase, ceilings: dict[str, float], seconds: float) -> Measured:
    """Check every provider of a case, then time those that are right, in turns."""
    measured = Measured()
    torch.manual_seed(SEED)
    try:
        inputs = case.operation.inputs(case.shape, case.setting)
    except Exception as error:
        measured.failed.append({"case": case.name, "provider": "all", "message": message(error)})
        return measured
    right: dict[str, tuple[Prepared, closeness.Closeness | None, dict[str, int] | None]] = {}
    for provider in case.operation.providers.values():
        about = {"case": case.name, "provider": provider.name}
        refusal = provider.refusal(case.shape, case.setting)
        if refusal is not None:
            measured.skipped.append(about | {"reason": refusal})
            continue
        try:
            right[provider.name] = _check(provider, inputs, case.setting)
        except Exception as error:  # out of memory too: the others go on
            measured.failed.append(about | {"message": message(error)})
    times, failures = in_turns(
        {name: prepared.run for name, (prepared, *_) in right.items()},
        case.setting.device,
        seconds,
        cold=case.part == "kernels",
    )
    measured.failed += [{"case": case.name, "provider": name, "message": text} for name, text in failures.items()]
    for name, taken in times.items():
        prepared, close, memory = right[name]
        row = _row(case, case.operation.providers[name], taken, times.get(case.operation.baseline))
        checked = _checked(prepared, case) if close else "not compared"
        row |= {"checked": checked, "max_error": close and close.error, "error_share": close and close.share}
        if memory is not None:
            row["memory_bytes"] = memory
        measured.rows.append(_rounded(row | _shares(row, prepared.work or inputs.work, ceilings)))
    return measured


def _check(
    provider: Provider, inputs: Any, setting: Setting
) -> tuple[Prepared, closeness.Closeness | None, dict[str, int] | None]:
    prepared = provider.build(inputs)
    close = None
    if prepared.results is not None:
        expected, plain = inputs.expected(setting.dropout_p if prepared.same_mask else 0.0)
        close = closeness.compare(prepared.results(), expected, plain)
    return prepared, close, None if prepared.memory is None else dict(prepared.memory())


def _checked(prepared: Prepared, case: GpuCase) -> str:
    what = "output" if case.setting.passes == work.FORWARD else "output and gradients"
    if not case.setting.dropout_p:
        return what
    return f"{what}, with the oracle's mask" if prepared.same_mask else f"{what}, without dropout"


def _row(case: GpuCase, provider: Provider, taken: Times, baseline: Times | None) -> dict[str, Any]:
    shape, setting = case.shape, case.setting
    dtype = str(setting.dtype).removeprefix("torch.")
    trains = case.part == "models" and setting.passes != work.FORWARD
    times = taken.device_s
    tenths = quantiles(times, n=10, method="inclusive")
    row: dict[str, Any] = {
        "case": case.name, "operation": case.operation.name, "shape": shape.name, "provider": provider.name,
        "note": provider.note, "passes": setting.passes, "dtype": dtype, "dropout_p": setting.dropout_p,
        "weights_dtype": "float32" if trains else dtype, "autocast": dtype if trains else None,
        "optimizer": "AdamW" in case.operation.name if trains else None, "layers": shape.sizes.num_layers,
        "hidden_size": shape.sizes.hidden_size, "histogram": shape.histogram, "order": shape.order,
        "sequences": sum(map(len, shape.batches)), "batches": len(shape.batches), "real_tokens": shape.real_tokens,
        "padded_tokens": shape.padded_tokens, "rounds": len(times), "time_s": median(times), "min_s": min(times),
        "p10_s": tenths[0], "p90_s": tenths[-1], "host_s": median(taken.host_s), "wall_s": median(taken.wall_s),
        "baseline": case.operation.baseline, "ratio": None,
    }  # fmt: skip
    if baseline is not None:
        row["ratio"] = median(one / other for one, other in zip(times, baseline.device_s, strict=False))
    return row | {"real_tokens_per_s": shape.real_tokens / row["time_s"]}


def _shares(row: dict[str, Any], amount: work.Work, ceilings: dict[str, float]) -> dict[str, Any]:
    """Rates, and how much of the measured ceiling they are: of the one that is nearer."""
    seconds = row["time_s"]
    tflops, gbps = amount.flops / seconds / 1e12, amount.bytes / seconds / 1e9
    floor = amount.floor_s(ceilings["matrix_tflops"] * 1e12, ceilings["copy_gbps"] * 1e9)
    return {
        "flops": amount.flops, "bytes": amount.bytes, "tflops": tflops, "gbps": gbps,
        "share_of_matrix_rate": tflops / ceilings["matrix_tflops"], "share_of_copy_rate": gbps / ceilings["copy_gbps"],
        "share_of_ceiling": floor / seconds,
    }  # fmt: skip


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}


def release(device: str) -> None:
    """Give back what the case before held."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def versions() -> dict[str, str | None]:
    """Of Python and the packages; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    found["cudnn"] = None if cudnn is None else str(cudnn)
    for name in ("torch", "triton", "transformers", "liger-kernel", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found | {"interpreted": os.environ.get("TRITON_INTERPRET", "0")}

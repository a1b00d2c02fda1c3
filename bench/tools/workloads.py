"""Calls that the tuning times: for each row of the kernels' tables, shapes that take it."""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from statistics import median
from typing import Any

import torch

from bench.engine.registry import OURS, Benchmark
from bench.engine.shapes import BACKWARD, FORWARD, LARGE, TWO_LAYERS, Setting, Shape, Sizes, batch_of, uniform
from bench.engine.timing import in_turns
from bench.ops.activation import ACTIVATION
from bench.ops.attention import ATTENTION
from bench.ops.embedding import EMBEDDING
from bench.ops.inputs import DROPOUT_P
from bench.ops.layer_norm import LAYER_NORM
from bench.ops.mlp import MLP

TUNED = {"attention": 400.0, "rows": 400.0, "linear": 400.0}
"""Parts of the tables, and the seconds that tuning each may take: enough on 16 cores, as a test works out."""
TOKENS, SIZES, DTYPE = 65536, TWO_LAYERS, torch.bfloat16
LENGTHS = {16: (16,), 32: (32,), 64: (64, 128), 128: (512,)}
"""Lengths of sequences that take a tile; the longer ones of 64 have several tiles a sequence."""
ROWS = {"layer_norm": LAYER_NORM, "embedding": EMBEDDING, "activation": ACTIVATION}
FUSED_ROWS = (512, 2048, 8192, 32768, TOKENS)
SECONDS = 1.0
"""Seconds of timing GELU in the epilogue at each of these numbers of rows."""


def linears(gelu: bool) -> tuple[tuple[int, int], ...]:
    """(in_features, out_features) of the linear layers of base and large; with GELU: linear1."""
    first = ((768, 3072), (1024, 4096))
    return first if gelu else ((768, 2304), (768, 768), (3072, 768), (1024, 1024), (4096, 1024), *first)


@lru_cache(maxsize=4)
def workload(entry: tuple[Any, ...], device: str) -> tuple[Callable[[], object], ...]:
    """Calls that take a row of the tables."""
    return tuple(_calls(entry, device))


def _calls(entry: tuple[Any, ...], device: str) -> Iterator[Callable[[], object]]:
    if entry[0] == "attention":
        _, kernel, _, tile, dropout = entry
        lengths = LENGTHS[tile]
        chosen = {"bwd_single_tile": lengths[:1], "bwd_dq": lengths[-1:], "bwd_dkdv": lengths[-1:]}
        passes = FORWARD if kernel == "fwd" else BACKWARD
        for length in chosen.get(kernel, lengths):
            yield _run(ATTENTION, uniform(length, TOKENS, SIZES), passes, DROPOUT_P if dropout else 0.0, device)
    elif entry[0] == "rows":
        operation, _, direction = entry[1].rpartition("_")
        for p in (0.0, DROPOUT_P):
            shape = uniform(min(LENGTHS[64]), TOKENS, SIZES)
            yield _run(ROWS[operation], shape, FORWARD if direction == "fwd" else BACKWARD, p, device)
    else:
        from erniem_fast.kernels.linear import launch_linear

        for size, out in linears(entry[2]):
            shapes = ((TOKENS, size), (out, size), (out,))
            x, weight, bias = (torch.randn(*shape, device=device, dtype=DTYPE) for shape in shapes)
            yield partial(launch_linear, x, weight, bias, "gelu" if entry[2] else None)


def _run(
    benchmark: Benchmark, shape: Shape, passes: str, p: float, device: str, provider: str = OURS
) -> Callable[[], object]:
    inputs = benchmark.inputs(shape, Setting(device, DTYPE, passes, p))
    return benchmark.providers[provider].build(inputs).run


def fused_gelu_times(device: str, sizes: tuple[Sizes, ...] = (TWO_LAYERS, LARGE)) -> list[tuple[int, float, float]]:
    """(rows, seconds of the MLPs with GELU in the epilogue, seconds with a pass for GELU), base and large together."""
    found = []
    for rows in FUSED_ROWS:
        shapes = [batch_of(rows, name="rows", sizes=one) for one in sizes]
        runs = {
            name: partial(run_all, [_run(MLP, shape, FORWARD, 0.0, device, name) for shape in shapes])
            for name in ("epilogue", "two passes")
        }
        times, failures = in_turns(runs, device, SECONDS)
        if failures:
            raise RuntimeError("; ".join(failures.values()))
        fused, apart = (median(times[name].device_s) for name in runs)
        found.append((rows, fused, apart))
    return found


def run_all(calls: Iterable[Callable[[], object]]) -> None:
    for call in calls:
        call()

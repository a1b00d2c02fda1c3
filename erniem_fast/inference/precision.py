"""The dtype that a device computes fastest in."""

import functools
import math
import time

import torch
import torch.nn.functional as F

from .cpu_streams import new_pool

FASTER = 1.25
"""How much less time a product must take in bfloat16 than in float32 to be chosen: what is between products gains
nothing. AMX takes a sixth; without matrix units bfloat16 takes longer than float32, or little less."""
ROWS, IN_FEATURES, OUT_FEATURES = 128, 768, 768
ROUNDS = 20


def auto_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes products in it much faster than in float32, float32 elsewhere.

    A GPU is asked whether it has bfloat16. A processor computes a few small products, once in a process: those with
    matrix units for bfloat16 (AMX) or fast instructions (AVX512-BF16) win. One thread computes them, by turns: it never
    waits for another one that a busy machine holds up.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and _is_faster(torch.bfloat16, torch.float32) else torch.float32


@functools.cache
def _is_faster(one: torch.dtype, other: torch.dtype) -> bool:
    """True if the processor multiplies in one dtype faster than in another."""
    with new_pool(1, 1) as thread:
        times = thread.submit(_least_seconds, one, other).result()
    return times[one] * FASTER <= times[other]


def _least_seconds(*dtypes: torch.dtype) -> dict[torch.dtype, float]:
    """Least time of a product in each dtype."""
    times = dict.fromkeys(dtypes, math.inf)
    with torch.inference_mode():
        operands = {
            dtype: [torch.ones(*shape, dtype=dtype) for shape in ((ROWS, IN_FEATURES), (OUT_FEATURES, IN_FEATURES))]
            for dtype in times
        }
        for x, weight in operands.values():  # oneDNN compiles a product when it first comes
            F.linear(x, weight)
        for _ in range(ROUNDS):  # by turns, and the least of each: other processes take time too
            for dtype, (x, weight) in operands.items():
                start = time.perf_counter()
                F.linear(x, weight)
                times[dtype] = min(times[dtype], time.perf_counter() - start)
    return times

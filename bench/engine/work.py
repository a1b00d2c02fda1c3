"""Work that an operation must do at least, whoever does it: FLOPs and bytes.

FLOPs are those of matrix products, two a multiply-add; elementwise work hides behind memory. Bytes are the least that
must cross the device's memory: each operand read once and each result written once, by one pass that fuses all it can.
Padding counts for nothing. Passes:

    forward             keeps nothing for backward
    backward            reads what forward kept
    forward+backward    both, and the bytes that forward writes in order to keep them

The formulas are in `bench/ops` and `bench/models`; tests hold each against a count by brute force.
"""

from dataclasses import dataclass

from .shapes import BACKWARD, FORWARD, PASSES

STATISTIC = 4
"""Bytes of a row's statistic (log-sum-exp, mean, rstd): float32."""
INDEX = 8
"""Bytes of an index: int64."""


@dataclass(frozen=True)
class Work:
    """FLOPs of matrix products, and bytes across memory."""

    flops: int
    bytes: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> "Work":
        return Work(self.flops * times, self.bytes * times)

    def floor_s(self, flops_per_s: float, bytes_per_s: float) -> float:
        """Least seconds: the slower of the two ceilings."""
        return max(self.flops / flops_per_s, self.bytes / bytes_per_s)


def work_of(passes: str, forward: Work, kept_bytes: int, backward: Work) -> Work:
    """Work of the passes; `kept_bytes` are written by forward for backward alone.

    Raises:
        ValueError: `passes` is none of PASSES.
    """
    if passes not in PASSES:
        raise ValueError(f"passes must be one of {', '.join(PASSES)}, got {passes!r}")
    if passes == FORWARD:
        return forward
    return backward if passes == BACKWARD else forward + Work(0, kept_bytes) + backward

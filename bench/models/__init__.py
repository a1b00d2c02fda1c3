"""Benchmarks of the whole encoder: inference, latency and training steps, by us and by peers; and of other families."""

from . import families
from .encoder import BENCHMARKS

FAMILIES = families.BENCHMARKS
ON_GPUS = (*BENCHMARKS, families.XLM_R)

__all__ = ["BENCHMARKS", "FAMILIES", "ON_GPUS"]

"""Benchmarks of the whole encoder: inference, latency and training steps, by us and by peers."""

from .encoder import BENCHMARKS

__all__ = ["BENCHMARKS"]

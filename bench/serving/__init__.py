"""Benchmarks of serving on a CPU: batches, strings to vectors, a server under load; beside other runtimes."""

from .forward import FORWARD
from .setup import SETUP, versions

BENCHMARKS = (FORWARD,)
__all__ = ["BENCHMARKS", "SETUP", "versions"]

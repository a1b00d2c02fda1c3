"""Benchmarks of serving on a CPU: batches, strings to vectors, a server under load; beside other runtimes."""

from .forward import FORWARD
from .server import SERVER
from .setup import SETUP, add_options, versions
from .texts import ENGINE, PIPELINES, SENTENCES

BENCHMARKS = (FORWARD, ENGINE, SENTENCES, PIPELINES, SERVER)
__all__ = ["BENCHMARKS", "SETUP", "add_options", "versions"]

"""Benchmarks of serving on a CPU: batches, strings to vectors, a server under load; beside other runtimes."""

from .forward import FORWARD
from .server import SERVER
from .setup import SETUP, add_options, describe
from .texts import ENGINE, GPU_ENGINE, PIPELINES, SENTENCES

BENCHMARKS = (FORWARD, ENGINE, SENTENCES, PIPELINES, SERVER)
ON_GPUS = (GPU_ENGINE,)
__all__ = ["BENCHMARKS", "ON_GPUS", "SETUP", "add_options", "describe"]

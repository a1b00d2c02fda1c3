"""Compiling by all cores, within a time."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from tqdm import tqdm


def in_time(function: Callable[[Any], Any], jobs: Sequence[Any], seconds: float) -> list[Any]:
    """Results of the first jobs, as many as the time suffices for, by a process on each core."""
    end, found = monotonic() + seconds, []
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        done = pool.imap(function, jobs)
        for _ in tqdm(jobs, desc="compiling", mininterval=10):
            try:
                found.append(done.next(max(end - monotonic(), 0.01)))
            except multiprocessing.TimeoutError:
                break
    return found

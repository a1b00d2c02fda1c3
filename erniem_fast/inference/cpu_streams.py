"""Batches side by side on a CPU, each by a thread of its own.

Two threads that share every product wait for each other behind it, and for the slower core each time; with a batch each
they never do.
"""

import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from ..ops.rows_cpu import modes_look_on

MOST_STREAMS = 8
"""Python runs one thread at a time between the operations, so that more of them would queue there."""
STREAM_TOKENS = 1024
"""Most tokens of a batch: more are no faster."""
LEAST_TOKENS = 256
"""Fewest tokens that are worth a stream: reading the weights takes as long as computing so few rows."""


def streams_for(rows: int, tokens: int) -> int:
    """Number of streams for so many rows of so many tokens together; 1: the calling thread computes them."""
    # Autocast and modes that look on hold in the thread that set them alone.
    if modes_look_on() or torch.is_autocast_enabled("cpu"):
        return 1
    return max(1, min(torch.get_num_threads(), MOST_STREAMS, rows, tokens // LEAST_TOKENS))


def share_of(tokens: int, streams: int) -> int:
    """Tokens of a batch for which all streams get as many batches."""
    batches = streams * -(-tokens // (streams * STREAM_TOKENS))
    return -(-tokens // batches)


def pool(streams: int) -> ThreadPoolExecutor:
    """Threads that share torch's threads among them."""
    return _pool(streams, max(1, torch.get_num_threads() // streams), os.getpid())


@functools.lru_cache(maxsize=4)
def _pool(streams: int, threads: int, process: int) -> ThreadPoolExecutor:
    """Keep a pool; a process that was forked has none of its parent's threads."""
    return new_pool(streams, threads)


def new_pool(workers: int, threads: int) -> ThreadPoolExecutor:
    """Threads that each compute with so many of torch's threads."""
    all_threads, begun = torch.get_num_threads(), threading.Barrier(workers + 1)

    def begin() -> None:
        torch.get_num_threads()  # takes the number that all threads begin with
        torch.set_num_threads(threads)  # of this thread
        begun.wait()

    made = ThreadPoolExecutor(workers, thread_name_prefix="stream", initializer=begin)
    for _ in range(workers):
        made.submit(int)
    begun.wait()
    torch.set_num_threads(all_threads)  # threads that begin later take the number that was set last
    return made

"""What other processes and threads do; processes as /proc shows them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 600.0
"""Seconds that a test waits for what comes, or is broken: many times what a busy machine needs."""


def is_there(pid: int) -> bool:
    """True if a process runs; one that has ended does not, though its parent may not have asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Callable[[], Any]) -> None:
    """Return once a condition holds."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)

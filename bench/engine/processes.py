"""Processes that end in time, with all that they have started."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path


def run_for(
    command: Sequence[str], seconds: float, folder: Path | None = None, variables: Mapping[str, str] | None = None
) -> int | None:
    """Exit code of a command in a session of its own; None if it had to be killed after so many seconds."""
    process = subprocess.Popen(command, cwd=folder, env=variables, start_new_session=True)
    try:
        return process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        return None
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)  # it writes what it has
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        raise
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)  # what it held of the GPU is free then

"""The loop over the cases: in order of importance, within a time limit, results written after every case."""

import faulthandler
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import Any

from .environment import CLOCKS, now, nvidia_smi, others_seconds, release
from .measure import measure
from .registry import Case
from .results import Measured, ResultFile
from .timing import ceilings, message, synchronize

CASE_SECONDS = {"cpu": 600.0, "families": 600.0, "serving": 600.0, "smoke": 60.0, "kernels": 90.0, "models": 150.0}
"""Seconds after which a case is broken off, by its part."""
HANG_SECONDS = 10.0
"""Seconds after that at which the process ends: a call that does not come back cannot be broken off."""
CLOCK_SECONDS = 15.0
"""Seconds between two looks at the GPU's clocks."""
GRACE_SECONDS = 40.0
"""Seconds past the limit after which the last case is broken off."""
CUDA_ERROR = re.compile(r"CUDA error|\[CUDA\]")
"""Begin of an error that stays, by PyTorch and by Triton; "CUDA out of memory" does not."""


class OutOfTimeError(BaseException):
    """The time limit is over. No `Exception`, so that no provider's handler catches it."""


class LostContextError(Exception):
    """A kernel broke the CUDA context: nothing that this process launches runs any more."""


def context_is_lost(device: str) -> bool:
    try:
        synchronize(device)
    except Exception:
        return True
    return False


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """End the process if the block takes longer, whatever it waits for: prints where, and has exit code 1."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError in the block after so many seconds; end the process where that has no effect.

    Python handles a signal between two of its own instructions, so not while it waits for the device.
    """

    def stop(_: int, __: FrameType | None) -> None:
        raise OutOfTimeError

    before, seconds = signal.signal(signal.SIGALRM, stop), max(seconds, 0.01)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with watchdog(seconds + HANG_SECONDS):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(
    file: ResultFile, cases: Sequence[Case], seconds: float, tiny: bool, clock: Callable[[], float] = monotonic
) -> None:
    """Measure cases until the time is over, and write the file after every one.

    Args:
        file: gets the results; cases that it has are not measured again.
        cases: the cases, the most important first.
        seconds: seconds after which no case is begun.
        tiny: True in a dry run.
        clock: seconds since any fixed moment.

    Raises:
        LostContextError: a case broke the CUDA context; its results are written.
    """
    device, begun, others = file.content["device"], clock(), others_seconds()
    about: dict[str, Any] = {"date": now(), "clocks_before": nvidia_smi(*CLOCKS)}
    with watchdog(6 * HANG_SECONDS):
        about["ceilings"] = ceilings(device, tiny)
    file.begin(about)
    waiting = [case for case in cases if case.name not in file.content["done"]]
    looked = begun

    def write(under_way: Case | None) -> float:
        """Write the file; the seconds so far."""
        nonlocal looked
        elapsed = clock() - begun
        if under_way is None or clock() - looked >= CLOCK_SECONDS:
            about["clocks_after"], looked = nvidia_smi(*CLOCKS), clock()
        about["seconds"] = round(elapsed, 1)
        if device == "cpu" and others is not None and elapsed > 0:
            about["others_busy_cores"] = round(((others_seconds() or others) - others) / elapsed, 2)
        file.content["left_out"] = [case.name for case in waiting]
        file.content["under_way"] = None if under_way is None else under_way.name
        file.write()
        return elapsed

    elapsed, first = clock() - begun, True
    while waiting and elapsed <= seconds:
        case = waiting.pop(0)
        elapsed = write(case)
        print(f"{elapsed:6.1f} s  {case.name}", flush=True)
        limit = CASE_SECONDS[case.part]
        left = seconds + GRACE_SECONDS - elapsed
        try:
            with time_limit(min(limit, left)):
                release(device)
                measured = measure(case, about["ceilings"])
        except OutOfTimeError:
            if left < limit and not first:
                waiting.insert(0, case)
                break
            measured = _broken(case, f"broken off: it takes longer than {min(limit, left):.0f} s")
        except Exception as error:  # the suite's own; a provider's is in its results
            measured = _broken(case, message(error))
        except BaseException:  # the user's interrupt: the case is measured another time
            waiting.insert(0, case)
            write(None)
            raise
        with watchdog(HANG_SECONDS):
            first, lost = False, context_is_lost(device)
        if lost:  # the first such error is the cause of all that follow
            places = [i for i, failure in enumerate(measured.failed) if CUDA_ERROR.search(failure["message"])]
            measured.failed = measured.failed[: places[0] + 1] if places else measured.failed
        _print(measured)
        file.add(case.name, measured)
        del measured
        elapsed = clock() - begun
        if lost:
            write(None)
            raise LostContextError(f"the CUDA context was lost in {case.name}")
    write(None)


def _broken(case: Case, text: str) -> Measured:
    return Measured(failed=[{"case": case.name, "provider": "all", "message": text}])


def _print(measured: Measured) -> None:
    for row in measured.rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:8.2f}x"
        print(f"    {row['provider']:30}{row['time_s'] * 1e6:12.1f} us{row['host_s'] * 1e6:10.1f} us host{ratio}")
    for failure in measured.failed:
        print(f"    {failure['provider']:30}failed: {failure['message'][:200]}")

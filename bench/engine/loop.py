"""The loop over the cases: in order of importance, within a time limit, results written after every case."""

import re
import signal
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
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError in the block after so many seconds."""

    def stop(_: int, __: FrameType | None) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
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
    waiting = [case for case in cases if case.name not in file.content["done"]]
    about: dict[str, Any] = {"date": now(), "clocks_before": nvidia_smi(*CLOCKS), "ceilings": ceilings(device, tiny)}
    file.begin(about)
    first, lost = True, False
    while True:
        elapsed = clock() - begun
        about |= {"clocks_after": nvidia_smi(*CLOCKS), "seconds": round(elapsed, 1)}
        if device == "cpu" and others is not None and elapsed > 0:
            about["others_busy_cores"] = round(((others_seconds() or others) - others) / elapsed, 2)
        file.content["left_out"] = [case.name for case in waiting]
        file.write()
        if lost:
            raise LostContextError(f"the CUDA context was lost in {file.content['done'][-1]}")
        if not waiting or elapsed > seconds:
            return
        case = waiting.pop(0)
        print(f"{elapsed:6.1f} s  {case.name}", flush=True)
        try:
            with time_limit(seconds + GRACE_SECONDS - elapsed):
                release(device)
                measured = measure(case, about["ceilings"])
        except OutOfTimeError:
            if not first:
                waiting.insert(0, case)
                continue
            measured = _broken(case, "broken off: it alone takes longer than all the time there is")
        except Exception as error:  # the suite's own; a provider's is in its results
            measured = _broken(case, message(error))
        first, lost = False, context_is_lost(device)
        if lost:  # the first such error is the cause of all that follow
            places = [i for i, failure in enumerate(measured.failed) if CUDA_ERROR.search(failure["message"])]
            measured.failed = measured.failed[: places[0] + 1] if places else measured.failed
        _print(measured)
        file.add(case.name, measured)
        del measured


def _broken(case: Case, text: str) -> Measured:
    return Measured(failed=[{"case": case.name, "provider": "all", "message": text}])


def _print(measured: Measured) -> None:
    for row in measured.rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:8.2f}x"
        print(f"    {row['provider']:30}{row['time_s'] * 1e6:12.1f} us{row['host_s'] * 1e6:10.1f} us host{ratio}")
    for failure in measured.failed:
        print(f"    {failure['provider']:30}failed: {failure['message'][:200]}")

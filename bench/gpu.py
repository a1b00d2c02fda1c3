"""The GPU suite: `python -m bench.gpu kernels` and `python -m bench.gpu models`; needs a checkout, no installation.

Each takes less than eight minutes. Cases come in order of importance; those that no longer fit are listed as left
out, and `--resume` goes on with them. Results are written after every case; one that breaks the CUDA context is the
last of its process, and another one goes on. Every figure's result has been compared with the oracle in the same run.
`--tiny` is a dry run on tiny shapes, on a CPU too; without it and without a GPU nothing is done.

`bench/results/README.md` says what the fields mean.
"""

import argparse
import datetime
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import torch

import erniem_fast

from .gpu_cases import SECONDS_A_CASE, GpuCase, Measured, cases, measure, release, versions
from .gpu_results import ResultFile, newest
from .gpu_shapes import PARTS
from .run import RESULTS, git, processor
from .timing import CLOCKS, ceilings, message, nvidia_smi, synchronize

SECONDS = 420.0
"""After which no case is begun."""
GRACE_SECONDS = 40.0
"""After which the last one is broken off."""


class OutOfTime(BaseException):
    """The time that the whole part has is over."""


class LostContext(Exception):  # noqa: N818
    """A kernel broke the CUDA context: nothing that this process launches runs any more."""


CUDA_ERROR = re.compile(r"CUDA error|\[CUDA\]")
"""As PyTorch and Triton begin them; "CUDA out of memory" is none that stays."""


def context_is_lost(device: str) -> bool:
    try:
        synchronize(device)
    except Exception:
        return True
    return False


def _broken(case: GpuCase, text: str) -> Measured:
    return Measured(failed=[{"case": case.name, "provider": "all", "message": text}])


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime after so many seconds."""

    def stop(_: int, __: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def describe(part: str, device: str, tiny: bool) -> dict[str, Any]:
    """What a file is of; a run that differs in any of it begins another one."""
    status = git("status", "--porcelain", "--", ".", ":!bench/results")
    return {
        "suite": f"gpu-{part}",
        "tiny": tiny,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "device": device,
        "processor": processor(device),
        "driver": (nvidia_smi("driver_version") or {}).get("driver_version"),
        "versions": versions() | {"erniem_fast": erniem_fast.__version__},
    }


def run(file: ResultFile, chosen: Sequence[GpuCase], seconds: float, tiny: bool, begun: float) -> None:
    """Measure cases until the time is over, and write the file after every one.

    Args:
        file: that gets the results; cases that it has are not measured again.
        chosen: the cases, the most important first.
        seconds: since `begun`, after which no case is begun.
        tiny: whether times mean nothing and should be few.
        begun: `time.monotonic()` of the beginning.

    Raises:
        LostContext: after a case that left the device of no use to this process; it is written all the same.
    """
    device = file.content["device"]
    waiting = [case for case in chosen if case.name not in file.content["done"]]
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    clocks = nvidia_smi(*CLOCKS)
    reached = ceilings(device, torch.float32 if device == "cpu" else torch.bfloat16, tiny)
    about: dict[str, Any] = {"date": date, "clocks_before": clocks, "ceilings": reached}
    file.begin(about)
    first, lost = True, False
    while True:
        about |= {"clocks_after": nvidia_smi(*CLOCKS), "seconds": round(monotonic() - begun, 1)}
        file.content["left_out"] = [case.name for case in waiting]
        file.write()
        if lost:
            raise LostContext(f"the CUDA context was lost in {file.content['done'][-1]}")
        if not waiting or monotonic() - begun > seconds:
            return
        case = waiting.pop(0)
        print(f"{monotonic() - begun:6.1f} s  {case.name}", flush=True)
        try:
            with time_limit(begun + seconds + GRACE_SECONDS - monotonic()):
                release(device)
                measured = measure(case, reached, 0.0 if tiny else SECONDS_A_CASE[case.part])
        except OutOfTime:
            if not first:
                waiting.insert(0, case)
                continue
            measured = _broken(case, "broken off: it alone takes longer than all the time there is")
        except Exception as error:  # of the suite itself: whatever a provider raises is in its results
            measured = _broken(case, message(error))
        first, lost = False, context_is_lost(device)
        if lost:  # what came after the first such error is none of its own
            places = [i for i, failure in enumerate(measured.failed) if CUDA_ERROR.search(failure["message"])]
            measured.failed = measured.failed[: places[0] + 1] if places else measured.failed
        _print(measured)
        file.add(case.name, measured)
        del measured


def _print(measured: Measured) -> None:
    for row in measured.rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:8.2f}x"
        print(f"    {row['provider']:30}{row['time_s'] * 1e6:12.1f} us{row['host_s'] * 1e6:10.1f} us host{ratio}")
    for failure in measured.failed:
        print(f"    {failure['provider']:30}failed: {failure['message'][:200]}")


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS, help="which part; both where it is not given")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: a dry run")
    parser.add_argument("--resume", action="store_true", help="go on with the newest file of this device and commit")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which no case of a part is begun")
    parser.add_argument("--output", type=Path, help="folder of the results; without it a dry run writes none")
    options = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        print("SKIPPED: no CUDA device, nothing was measured")
        return 0
    folder = options.output or RESULTS
    if options.tiny and options.output is None:
        parser.error("--tiny needs --output: its figures mean nothing, and must not lie among the results")
    if options.part is None:
        given = sys.argv[1:] if argv is None else argv
        return max([subprocess.run([*COMMAND, part, *given], check=False).returncode for part in PARTS])
    part, begun, about = options.part, monotonic(), describe(options.part, device, options.tiny)
    name = about["processor"].lower().replace("nvidia ", "").replace(" ", "-") if device == "cuda" else "cpu"
    file = ResultFile.new(folder / f"gpu-{part}-{name}-{about['date'][:10]}.json", about)
    if options.resume and (path := newest(folder, part, name)) is not None:
        before = ResultFile.read(path)
        if not before.continues(about):
            print(f"{path} is whole, or of other code or another machine: nothing to go on with", file=sys.stderr)
            return 1
        file = before
    try:
        run(file, cases(part, device, options.tiny), options.seconds, options.tiny, begun)
    except LostContext as error:
        seconds = options.seconds - (monotonic() - begun)
        print(f"{error}; {len(file.content['left_out'])} cases are left", flush=True)
        if file.content["left_out"] and seconds > 0:
            again = [*COMMAND, part, "--resume", "--seconds", f"{seconds:.0f}", "--output", str(folder)]
            os.execv(sys.executable, again + ["--tiny"] * options.tiny)
    left, failed = file.content["left_out"], file.content["failed"]
    print(f"{len(file.content['rows'])} figures, {len(failed)} failures, {len(left)} cases left out: {file.path}")
    return int(any(row["provider"].startswith(OURS) for row in failed))


COMMAND = (sys.executable, "-m", "bench.gpu")
OURS = ("triton", "padding-free", "all")
"""How the names of providers begin whose failure is this project's."""

if __name__ == "__main__":
    sys.exit(main())

"""The GPU suite: `python -m bench.gpu {all,smoke,check,kernels,models}`; needs a checkout, no installation.

    smoke      is each operation right? one shape of each, forward and backward
    check      are the kernels right on this GPU? tests and compute-sanitizer
    kernels    the operations against their peers
    models     the whole encoder against its peers
    all        these four, then `bench.tools.tune`, as far as `--minutes` reach; a wrong smoke test ends it

Each takes less than nine minutes; without a part, kernels and models are measured. `all --resume DIR` goes on where
the call that wrote DIR stopped. Without a GPU nothing is done but a dry run. docs/gpu.md has an example.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, time
from typing import Any

import torch

from . import suite
from .engine.environment import SOURCES, digest
from .engine.loop import GRACE_SECONDS, HANG_SECONDS
from .engine.processes import run_for
from .tools import check
from .tools.workloads import TUNED

PARTS = ("kernels", "models")
START_SECONDS = 30.0
"""Seconds that a process takes to import PyTorch and to write its end, about."""
MARGIN = GRACE_SECONDS + HANG_SECONDS + START_SECONDS
"""Seconds that a part may take beyond its own."""
LEAST_SECONDS = 30.0
"""A part is not begun with less."""


def measure(part: str, options: argparse.Namespace, seconds: float) -> int:
    """Measure a part in a process of its own, and go on in another one after a hang or a lost context."""
    folder, end, resume = suite.output_of(options), monotonic() + seconds, bool(options.resume)
    while True:
        begun, rest = time(), max(end - monotonic(), 0.0)
        code = run_for(worker(part, options, rest, resume), rest + MARGIN)
        path = newest(folder, part)
        written = path is not None and path.stat().st_mtime >= begun
        died = code == suite.LOST or (written and read(path)["under_way"])
        if not died or monotonic() >= end:
            return 1 if code is None or code < 0 or died else code
        resume = True


def worker(part: str, options: argparse.Namespace, seconds: float, resume: bool) -> list[str]:
    """Command that measures a part."""
    command = [sys.executable, "-m", "bench.run", part, "--seconds", f"{seconds:.0f}"]
    command += ["--output", str(options.output), *(["--only", options.only] if options.only else [])]
    command += [word for module in options.provider for word in ("--provider", module)] + ["--tiny"] * options.tiny
    return command + ["--resume"] * resume


def newest(folder: Path, part: str) -> Path | None:
    """The result file of a part that was written last."""
    return max(folder.glob(f"gpu-{part}-*.json"), key=lambda path: path.stat().st_mtime, default=None)


def read(path: Path | None) -> dict[str, Any]:
    return {} if path is None else dict(json.loads(path.read_text(encoding="utf-8")))


def is_whole(folder: Path, part: str, tiny: bool) -> bool:
    """True if nothing is left of a part, done with these sources."""
    if part in TUNED:
        from .tools import tune  # needs Triton

        return tune.names_of(part) <= tune.tried_in(folder / tune.FILE)
    content = read(newest(folder, part))
    same = (content.get("sources"), content.get("tiny")) == (digest(*SOURCES), tiny)
    return same and not (content["left_out"] or content.get("under_way") or (part == "smoke" and content["failed"]))


def is_wrong(folder: Path, part: str) -> bool:
    """True if a part that is whole has found something of ours wrong."""
    if part in TUNED:
        return False
    return (check if part == "check" else suite).is_wrong(read(newest(folder, part)))


def run_all(options: argparse.Namespace) -> int:
    """All parts that are not whole yet, as far as the time reaches; the exit code."""
    end, folder = monotonic() + 60 * options.minutes, suite.output_of(options)
    resumed, tiny = bool(options.resume), options.tiny
    parts, last = ("smoke", "check", *PARTS), () if tiny else tuple(TUNED)
    codes: dict[str, int] = {}
    # Each part once, then what was left of them, so that one with many cases does not keep the others waiting.
    turns = sorted(parts, key=lambda part: resumed and part != "smoke" and newest(folder, part) is not None)
    for name in (*turns, *parts, *last):
        seconds = end - monotonic() - MARGIN
        if seconds < LEAST_SECONDS:
            break
        options.resume = resumed or name in codes
        if options.resume and is_whole(folder, name, tiny):
            codes.setdefault(name, int(is_wrong(folder, name)))
            continue
        print(f"== {name}", flush=True)
        codes[name] = step(name, options, seconds)
        if name == "smoke" and codes[name]:
            print("The smoke test did not pass: nothing else is done", file=sys.stderr)
            return 1
    wrong = [name for name, code in codes.items() if code]
    left = [name for name in (*parts, *last) if not is_whole(folder, name, tiny)]
    print(f"== wrong or cut off: {', '.join(wrong) or 'none'}; left: {', '.join(left) or 'nothing'}", flush=True)
    return int(bool(wrong))


def step(name: str, options: argparse.Namespace, seconds: float) -> int:
    """Go on with a part of `all` for so many seconds at most; the exit code."""
    if name in suite.SECONDS:
        return measure(name, options, min(seconds, suite.SECONDS[name]))
    given = min(seconds, TUNED.get(name, check.SECONDS))
    command = [sys.executable, "-m", "bench.gpu" if name == "check" else "bench.tools.tune", name]
    command += ["--output", str(options.output), "--seconds", f"{given:.0f}", *["--tiny"] * options.tiny]
    command += ["--resume"] * bool(options.resume)
    code = run_for(command, given + MARGIN)
    return 1 if code is None else code


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n\n{suite.__doc__}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=("all", "smoke", "check", *PARTS))
    suite.add_options(parser)
    parser.add_argument("--minutes", type=float, default=60.0, help="minutes that `all` may take")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available() and not options.tiny:
        print("SKIPPED: no CUDA device, nothing was checked or measured")
        return 0
    if options.part == "all":
        return run_all(options)
    if options.part == "check":
        folder, seconds = suite.output_of(options), check.SECONDS if options.seconds is None else options.seconds
        return check.main(folder, seconds, options.resume, options.tiny)
    parts = [options.part] if options.part else list(PARTS)
    found = [part for part in parts if suite.matching(part, options)]
    if not found:
        parser.error(suite.NO_CASE)
    seconds = {part: suite.SECONDS[part] if options.seconds is None else options.seconds for part in found}
    suite.output_of(options)
    return max(measure(part, options, seconds[part]) for part in found)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it ends what it has started
    raise SystemExit(main())

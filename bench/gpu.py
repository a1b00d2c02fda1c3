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
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from . import suite
from .engine.environment import SOURCES, digest
from .engine.loop import GRACE_SECONDS, HANG_SECONDS
from .engine.processes import run_for
from .tools import check, tune

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
        command = worker(part, options, max(end - monotonic(), 0.0), resume)
        code = run_for(command, max(end - monotonic(), 0.0) + MARGIN)
        path = newest(folder, part)
        died = code == suite.LOST or (path is not None and bool(read(path)["under_way"]))
        if not died or monotonic() >= end:
            return 1 if code is None or died else code
        resume = True


def worker(part: str, options: argparse.Namespace, seconds: float, resume: bool) -> list[str]:
    """Command that measures a part."""
    command = [sys.executable, "-m", "bench.suite", part, "--seconds", f"{seconds:.0f}"]
    command += ["--output", str(options.output), *(["--only", options.only] if options.only else [])]
    command += [word for module in options.provider for word in ("--provider", module)] + ["--tiny"] * options.tiny
    return command + ["--resume"] * resume


def newest(folder: Path, part: str) -> Path | None:
    """The result file of a part that was written last."""
    return max(folder.glob(f"gpu-{part}-*.json"), key=lambda path: path.stat().st_mtime, default=None)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def is_whole(folder: Path, part: str, tiny: bool) -> bool:
    """True if nothing is left of a part, done with these sources."""
    if part in tune.PARTS:
        return tune.names_of(part) <= tune.tried_in(folder / tune.FILE)
    path = newest(folder, part)
    content = {} if path is None else read(path)
    same = (content.get("sources"), content.get("tiny", False)) == (digest(*SOURCES), tiny)
    return (
        same and not content["left_out"] and not content.get("under_way") and (part != "smoke" or not content["failed"])
    )


def run_all(options: argparse.Namespace) -> int:
    """All parts that are not whole yet, as far as the time reaches; the exit code."""
    end, folder, codes = monotonic() + 60 * options.minutes, suite.output_of(options), {}
    options.resume = True
    parts = ("smoke", "check", *PARTS)
    # Each part once, then what was left of them, so that one with many cases does not keep the others waiting.
    turns = sorted(parts, key=lambda part: part != "smoke" and newest(folder, part) is not None)
    for name in (*turns, *parts, *(() if options.tiny else tune.PARTS)):
        seconds = end - monotonic() - MARGIN
        if seconds < LEAST_SECONDS:
            break
        if not is_whole(folder, name, options.tiny):
            print(f"== {name}", flush=True)
            codes[name] = step(name, options, seconds)
            if name == "smoke" and codes[name]:
                print("The smoke test found a wrong operation: nothing else is done", file=sys.stderr)
                return 1
    wrong = [name for name, code in codes.items() if code]
    left = [
        name for name in (*parts, *(() if options.tiny else tune.PARTS)) if not is_whole(folder, name, options.tiny)
    ]
    print(f"== wrong or cut off: {', '.join(wrong) or 'none'}; left: {', '.join(left) or 'nothing'}", flush=True)
    return int(bool(wrong))


def step(name: str, options: argparse.Namespace, seconds: float) -> int:
    """Go on with a part of `all` for so many seconds at most; the exit code."""
    if name in suite.SECONDS:
        return measure(name, options, min(seconds, suite.SECONDS[name]))
    module, most = (
        (["bench.gpu", name], check.SECONDS) if name == "check" else (["bench.tools.tune", name], tune.SECONDS)
    )
    given = min(seconds, most)
    command = [sys.executable, "-m", *module, "--output", str(options.output), "--seconds", f"{given:.0f}", "--resume"]
    code = run_for(command + ["--tiny"] * options.tiny, given + MARGIN)
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
    asked = [options.part] if options.part else list(PARTS)
    found = [part for part in asked if suite.matching(part, options)]
    if not found:
        parser.error(suite.no_case(asked[0], options))
    suite.output_of(options)
    return max(
        measure(part, options, suite.SECONDS[part] if options.seconds is None else options.seconds) for part in found
    )


if __name__ == "__main__":
    raise SystemExit(main())

"""The GPU suite: `python -m bench.gpu {check,kernels,models}`; needs a checkout, no installation.

    check      are the kernels right on this GPU? tests and compute-sanitizer
    kernels    the operations against their peers
    models     the whole encoder against its peers

Each takes less than eight minutes; without a part, kernels and models are measured. Without a GPU nothing is done.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence

from . import suite
from .engine.environment import RESULTS
from .tools import check

PARTS = ("kernels", "models")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n\n{suite.__doc__}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=("check", *PARTS))
    suite.add_options(parser)
    given = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(given)
    if options.part is None:  # a process each: one may lose its CUDA context
        return max(subprocess.run([sys.executable, "-m", "bench.gpu", part, *given]).returncode for part in PARTS)
    if options.part == "check":
        return check.main(options.output or RESULTS, options.seconds or check.SECONDS)
    return suite.main(options.part, options)


if __name__ == "__main__":
    raise SystemExit(main())

"""The CPU suite: `python -m bench.run [PART]`; writes bench/results/cpu-<date>.json, families-<date>.json, ...

`bench.gpu` starts it for the other parts.
"""

import argparse
from collections.abc import Sequence

import torch

from . import serving, suite
from .engine.registry import CPU_PARTS


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n\n{suite.__doc__}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=tuple(suite.BENCHMARKS), default="cpu")
    suite.add_options(parser)
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch on a CPU")
    serving.add_options(parser)
    options = parser.parse_args(argv)
    if options.part in CPU_PARTS:
        torch.set_num_threads(options.threads)
    serving.SETUP.texts, serving.SETUP.peer_python = options.texts, options.peer_python
    return suite.measure(options.part, options)


if __name__ == "__main__":
    raise SystemExit(main())

"""What the tools share that time the demo's documents on a CPU: options, models, times in turns, the result file."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import torch

from bench.engine.environment import RESULTS, ROOT, describe, now, others_seconds
from bench.engine.results import Measured, ResultFile
from bench.engine.shapes import Sizes
from bench.engine.timing import in_turns
from erniem_fast import ErnieMTokenizer

TOKENIZER = ROOT / "erniem_fast" / "demo_data" / "tokenizer"
Runs = dict[str, Callable[[], Any]]
Rows = list[dict[str, Any]]


def parser(description: str | None, seconds: float) -> argparse.ArgumentParser:
    """Options of every tool.

    Args:
        description: of the tool.
        seconds: of timing, for each table.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", help="folder of a checkpoint; random weights without it")
    made.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    made.add_argument("--seconds", type=float, default=seconds, help="seconds of timing, for each table")
    made.add_argument("--tiny", action="store_true", help="dry run on a tiny model")
    made.add_argument("--output", type=Path, default=RESULTS, help="folder of the result file")
    return made


def random_model(cls: Any, layers: int, tiny: bool, **changes: Any) -> tuple[Any, ErnieMTokenizer]:
    """A model of ernie-m-base's width with random weights, and the demo's tokenizer."""
    tokenizer = ErnieMTokenizer.from_pretrained(TOKENIZER)
    sizes: dict[str, int] = {"hidden_size": 32, "num_heads": 4, "intermediate_size": 48} if tiny else {}
    config = Sizes(vocab_size=len(tokenizer), num_layers=layers, **sizes).config()
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return cls(config).eval(), tokenizer


def timed(runs: Runs, options: argparse.Namespace, more: dict[str, dict[str, Any]]) -> Rows:
    """Rows of a table: times in turns, median ratios to the first one's, and further columns."""
    times, failures = in_turns(runs, "cpu", 0.0 if options.tiny else options.seconds, cold=False)
    if failures:
        raise RuntimeError(f"{failures}")
    first = times[next(iter(runs))].wall_s
    return [
        {
            "provider": name,
            "time_s": median(taken.wall_s),
            "ratio": median(one / other for one, other in zip(taken.wall_s, first, strict=True)),
            "rounds": len(first),
        }
        | {column: values[name] for column, values in more.items()}
        for name, taken in times.items()
    ]


def write(
    options: argparse.Namespace, suite: str, tables: Iterable[tuple[str, Rows]], packages: Sequence[str] = ()
) -> None:
    """Print tables, which are measured when they are asked for, and write them as one run of a result file.

    Args:
        options: of the command line.
        suite: first part of the file's name.
        tables: operation and rows of each.
        packages: further ones whose versions the file names.
    """
    about = describe("cpu") | {"suite": suite, "tiny": options.tiny, "checkpoint": options.model}
    about["versions"] |= {name: version(name) for name in packages}
    file = ResultFile.new(options.output / f"{suite}-{about['date'][:10]}.json", about)
    begun, others = monotonic(), others_seconds()
    run: dict[str, Any] = {"date": now()}
    file.begin(run)
    for operation, rows in tables:
        file.add(operation, Measured([{"operation": operation} | row for row in rows]))
        for row in rows:
            print(f"{operation:22} {row['provider']:45}{row['time_s']:8.3f} s{row['ratio']:8.2f}x")
    run["seconds"] = round(monotonic() - begun, 1)
    if others is not None:
        run["others_busy_cores"] = round(((others_seconds() or others) - others) / run["seconds"], 2)
    file.write()
    print(file.path)

"""README's tables, made from the newest results.

python -m bench.table --write README.md    # replaces what stands between the two markers
python -m bench.table --check README.md    # exits with 1 if that is not what the results say
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import gpu_tables
from .markdown import Goal, goals_table, markdown, seconds, write_or_check

RESULTS = Path(__file__).parent / "results"
OF_THE_MODEL = ("encoder", "training-step")
"""What the README shows; single operations stand in the result files."""
START, END = "<!-- bench:start -->", "<!-- bench:end -->"
Cases = dict[tuple[str, str, str], dict[str, Any]]


def _ratio(shape: str, provider: str) -> Callable[[Cases], float]:
    return lambda cases: cases["encoder", shape, provider]["ratio"]


def _overhead(shape: str) -> Callable[[Cases], float]:
    return lambda cases: 1 / _ratio(shape, "matrix products")(cases)


def _memory(cases: Cases) -> float:
    padded, packed = (cases["training-step", "1x500+15x20", name] for name in ("padded", "padding-free"))
    return packed["memory_bytes"]["saved_for_backward"] / padded["memory_bytes"]["saved_for_backward"]


GOALS = (
    Goal("Real tokens/s against the padded reference, unsorted", 5, True, _ratio("xquad-arrival", "padded"), "x"),
    Goal("The same, sorted by length", 1.2, True, _ratio("xquad-sorted", "padded"), "x"),
    Goal("Time of a forward against its matrix products alone, unsorted", 1.3, False, _overhead("xquad-arrival"), "x"),
    Goal("The same, sorted by length", 1.3, False, _overhead("xquad-sorted"), "x"),
    Goal("Memory kept for backward against the padded reference, 1 long text of 16", 0.25, False, _memory, ""),
)


def cases_table(result: dict[str, Any]) -> str:
    """Every case of a result."""
    head = ["operation", "shape", "provider", "median", "10% to 90%", "real tokens/s", "time to baseline's"]
    rows = []
    for case in result["cases"]:
        spread = f"{seconds(case['p10_s'])} to {seconds(case['p90_s'])}"
        ratio = "baseline" if case["provider"] == case["baseline"] else f"{case['ratio']:.2f}"
        padding = f"{case['shape']} ({case['real_tokens']:,} of {case['padded_tokens']:,})"
        rate = f"{case['real_tokens_per_s']:,.0f}"
        rows.append([case["operation"], padding, case["provider"], seconds(case["median_s"]), spread, rate, ratio])
    return markdown(head, rows)


def memory_table(result: dict[str, Any]) -> str:
    """The cases whose memory was measured."""
    head = ["operation", "shape", "provider", "saved for backward", "peak of a step"]
    rows = [
        [case["operation"], case["shape"], case["provider"]]
        + [f"{case['memory_bytes'][name] / 2**20:,.1f} MiB" for name in ("saved_for_backward", "peak_step")]
        for case in result["cases"]
        if "memory_bytes" in case
    ]
    return markdown(head, rows) if rows else ""


def index(result: dict[str, Any]) -> Cases:
    """The cases by operation, shape and provider."""
    return {(case["operation"], case["shape"], case["provider"]): case for case in result["cases"]}


def describe(path: Path, result: dict[str, Any]) -> str:
    """Where the numbers come from."""
    versions = result["versions"]
    commit = f"`{result['commit'][:12]}`" if result["commit"] else "unknown"
    dtypes = ", ".join(sorted({case["dtype"] for case in result["cases"]}))
    return (
        f"Measured on {result['date'][:10]} by `python -m bench.run` ([{path.name}](bench/results/{path.name})): "
        f"{result['processor']}, {result['cores']} cores, {result['threads']} threads, {dtypes}, "
        f"torch {versions['torch']}, transformers {versions['transformers']}, commit {commit}"
        f"{', changed since' if result['dirty'] else ''}. "
        "This text is made by `python -m bench.table --write README.md`."
    )


def newest(folder: Path) -> list[Path]:
    """The newest result of each device; reports of the GPU check are none."""
    found: dict[str, tuple[str, Path]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "cases" in result and result["date"] >= found.get(result["device"], ("", path))[0]:
            found[result["device"]] = result["date"], path
    return [path for _, path in found.values()]


def render(folder: Path) -> str:
    """What stands between the markers.

    Raises:
        FileNotFoundError: there is no result.
    """
    paths = newest(folder)
    if not paths:
        raise FileNotFoundError(f"no results in {folder}: run `python -m bench.run` first")
    parts = []
    for path in paths:
        result = json.loads(path.read_text(encoding="utf-8"))
        models = result | {"cases": [case for case in result["cases"] if case["operation"] in OF_THE_MODEL]}
        parts += [describe(path, result), goals_table(GOALS, index(result)), cases_table(models), memory_table(models)]
    return "\n\n".join(part for part in [*parts, gpu_tables.render(folder)] if part)


def replace(text: str, table: str) -> str:
    """`text` with the table between its markers.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in rest or END in after:
        raise ValueError(f"there must be one {START} and after it one {END}")
    return f"{before}{START}\n{table}\n{END}{after}"


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="FILE")
    action.add_argument("--check", type=Path, metavar="FILE")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(argv)
    path = options.write or options.check
    try:
        text = path.read_text(encoding="utf-8")
        expected = replace(text, render(options.results))
    except (OSError, ValueError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    return write_or_check(path, expected, options.write is not None, f"python -m bench.table --write {path}")


if __name__ == "__main__":
    raise SystemExit(main())

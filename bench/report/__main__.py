"""The report, from the newest result files: README's part, docs/benchmarks.md, roofline page, charts.

python -m bench.report --write    # writes all of it
python -m bench.report --check    # exits with 1 if a text differs from what the results say
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.engine.environment import RESULTS, ROOT

from . import chart, readme, roofline, training


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true")
    action.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="folder of the charts")
    options = parser.parse_args(argv)
    try:
        pages = [*readme.texts(options.results), (options.results / roofline.PAGE, roofline.render(options.results))]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.write:
        for path, text in pages:
            path.write_text(text, encoding="utf-8")
        options.images.mkdir(parents=True, exist_ok=True)
        chart.draw(options.results, options.images)
        training.draw_training(options.results, options.images)
        return 0
    stale = [path for path, text in pages if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path} is stale: run `python -m bench.report --write`", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())

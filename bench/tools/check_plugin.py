"""pytest plugin of the check: puts the tests in order, leaves out those of an earlier run, notes each one as it ends.

The variable LOG names a file that gets a line of JSON for each test that begins or ends, DONE one with the names of
those that are left out. With xdist the process that writes is the one that started the others.
"""

import json
import os
from pathlib import Path
from time import time
from typing import Any

LOG, DONE = "BENCH_CHECK_LOG", "BENCH_CHECK_DONE"


def pytest_collection_modifyitems(items: list[Any]) -> None:
    done = set(json.loads(Path(os.environ[DONE]).read_text(encoding="utf-8")))
    left = [item for item in items if item.nodeid not in done]
    # Each process takes a stretch of the list, later those that others have not come to: begin every stretch alike.
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items[:] = [item for first in range(count) for item in left[first::count]]


def pytest_runtest_logstart(nodeid: str) -> None:
    _note({"test": nodeid, "begun": time()})


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or report.outcome != "passed":
        text = "" if report.outcome == "passed" else str(report.longrepr)[-500:]
        _note({"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration, "message": text})


def _note(line: dict[str, Any]) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        with open(os.environ[LOG], "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

"""Examples of a fine-tuning task, read from a file that a test writes."""

import gzip
from pathlib import Path
from typing import Any

from erniem_fast.files.rows import BadLines
from erniem_fast.files.source import open_source


def read(task: Any, path: Path, text: str, skip: bool = False) -> tuple[list[Any], BadLines]:
    """The examples of a text, and what became of its bad lines.

    Args:
        task: a fine-tuning task.
        path: where the text is written; its ending says what it is.
        text: content of the file.
        skip: leave bad lines out.
    """
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    bad = BadLines(skip)
    with open_source(str(path), accepted=task.kinds, what="TRAIN") as source:
        return task.read(source, bad), bad

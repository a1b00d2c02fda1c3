"""Progress bars on stderr that never stop the work: output that cannot be written is dropped."""

import io
import sys
from typing import Any, TextIO

from tqdm import tqdm

SECONDS_ON_A_TERMINAL, SECONDS_IN_A_LOG = 0.1, 10.0
"""Least time between two updates of a bar."""


class LossyStream(io.TextIOBase):
    """A text stream that drops output instead of raising an error: a closed pipe, a full disk, no stream at all.

    Args:
        stream: the stream that receives the output; None: everything is dropped.

    Attributes:
        lost: True once anything was dropped.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.lost = stream is None

    def write(self, text: str) -> int:
        try:
            if self.stream is not None:
                self.stream.write(text)
        except (OSError, ValueError):  # ValueError: the stream is closed
            self.lost = True
        return len(text)

    def flush(self) -> None:
        try:
            if self.stream is not None:
                self.stream.flush()
        except (OSError, ValueError):
            self.lost = True

    def isatty(self) -> bool:
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream; tqdm draws its bar in ASCII or in blocks accordingly."""
        return getattr(self.stream, "encoding", None) or "utf-8"


def progress_bar(total: int | None, description: str, unit: str, shown: bool, done: int = 0) -> Any:
    """A tqdm bar on stderr.

    Args:
        total: units of the whole work; None: unknown.
        description: text before the bar.
        unit: name of the unit, with a leading space.
        shown: False: a bar that draws nothing.
        done: units that were done before.
    """
    stream = LossyStream(sys.stderr)
    interval = SECONDS_ON_A_TERMINAL if stream.isatty() else SECONDS_IN_A_LOG
    return tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=unit,
        unit_scale=True,
        mininterval=interval,
        disable=not shown,
        file=stream,
    )

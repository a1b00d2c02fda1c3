"""End a command: bad input in one line, signals without leftovers, an unwritable stderr without harm."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from types import FrameType
from typing import Any, NoReturn

import torch
import typer
from typer.core import TyperGroup

from ..files.errors import InputError as InputError
from ..inference.loading import CheckpointError
from ..inference.progress import LossyStream

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # click's; typer may bring a click of its own
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end the process like SIGINT, which Python turns into an exception by itself."""


def say_on_stderr(line: str) -> None:
    """Print a line to stderr, whatever stderr is."""
    print(line, file=sys.stderr, flush=True)


class OneLineErrors(TyperGroup):
    """A command group whose errors are one line on stderr, without usage, box or traceback.

    Exit code 2 for bad input, 1 for a device out of memory or a stdout that cannot be written, 128 + n for signal n.
    """

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        args = sys.argv[1:] if args is None else list(args)
        extra["standalone_mode"] = False
        with _lossy_stderr(), _signals_as_exits():
            try:
                code = super().main(args or ["--help"], *rest, **extra)
            except CheckpointError as error:
                say_on_stderr(f"Error: --{' '.join(str(error).split())}")
                code = 2
            except (USAGE_ERROR, InputError) as error:
                message = error.format_message() if hasattr(error, "format_message") else str(error)
                if message:  # none where a group without a command has shown its help
                    say_on_stderr(f"Error: {' '.join(message.split())}")
                code = 2
            except torch.OutOfMemoryError:
                say_on_stderr("Error: the device is out of memory; try a smaller --batch-tokens or --dtype bfloat16")
                code = 1
            except OSError as error:  # stdout on a full disk; typer itself ends with 1 where nobody reads stdout
                say_on_stderr(f"Error: {' '.join(str(error).split())}")
                _discard(LossyStream(sys.stdout))
                code = 1
            except (typer.Abort, KeyboardInterrupt):
                code = 130
            sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def _lossy_stderr() -> Iterator[None]:
    """Replace stderr by a stream that never fails, and fill the descriptors of standard streams that are closed."""
    with suppress(OSError):
        # The lowest free descriptor comes first: a file at 1 or 2 would receive what libraries print there.
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(descriptor, True)  # a process that is started here has the same to fear
        os.close(descriptor)
    stream = LossyStream(sys.stderr)
    with redirect_stderr(stream):
        try:
            yield
        finally:
            stream.flush()
            if stream.lost:
                _discard(stream)


def _discard(stream: LossyStream) -> None:
    """Redirect a broken stream to nowhere, so that flushing it at exit raises no error and changes no exit code."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), stream.fileno())


@contextmanager
def _signals_as_exits() -> Iterator[None]:
    """Raise SystemExit where a signal would kill the process, so that `finally` blocks remove temporary files."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)  # a second one kills at once
        raise SystemExit(128 + number)

    # Ignored signals stay ignored: nohup. A program that runs the app, perhaps in a thread, keeps its own handlers.
    taken = []
    with suppress(ValueError):  # not the main thread
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, leave)
                taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)

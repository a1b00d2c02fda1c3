"""What the commands that train share: how a run ends, and on which process it speaks."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import clear_frames
from typing import Annotated

import torch
import typer

from ..inference.loading import CheckpointError
from .errors import InputError, say_on_stderr
from .options import parse_device

SkipBadLinesOption = Annotated[
    bool, typer.Option("--skip-bad-lines", help="Leave malformed lines out, and count them.")
]
RestartOption = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Begin anew, whatever a run that was stopped left in DIR.partial; the DIR of a run that ended is replaced "
        "at the end, with all that was put into it since.",
    ),
]
PlaceOption = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="auto: a GPU if there is one.")]


def leads() -> bool:
    """True on the process that prints and writes: the first that torchrun has started, or the only one."""
    return not int(os.environ.get("RANK", "0"))


def say_once(line: str) -> None:
    """Print a line to stderr, on the process that speaks."""
    if leads():
        say_on_stderr(line)


def parse_place(name: str) -> torch.device:
    """Parse the device of a run, which has no number but 0: each process takes its own.

    Raises:
        InputError: there is no such device, or it has another number.
    """
    if name not in ("auto", "cpu", "cuda", "cuda:0"):
        raise InputError(f"--device {name!r}: expected auto, cpu or cuda; CUDA_VISIBLE_DEVICES chooses GPUs")
    return parse_device(name)


@contextmanager
def exit_codes() -> Iterator[Callable[[str], None]]:
    """Context that ends the command with one line and an exit code; gives what prints lines about the run."""
    from ..training.callbacks import StoppedError
    from ..training.exact_trainer import NonFiniteLossError, SavingError
    from ..training.processes import end_process_group

    try:
        yield say_once
        end_process_group()
    except (InputError, CheckpointError):
        if not leads():  # the first process says the same
            raise typer.Exit(2) from None
        raise
    except (NonFiniteLossError, SavingError) as error:
        say_on_stderr(f"Error: {' '.join(str(error).split())}")
        raise typer.Exit(1) from error
    except StoppedError as stopped:
        say_once(f"Stopped: the state after step {stopped.step} is kept; the same command goes on behind it")
        clear_frames(stopped.__traceback__)  # they refer to the trainer
        end_process_group()
        raise typer.Exit(128 + stopped.number) from stopped

"""What a run shows and writes while it trains, and how a signal ends it with its state saved."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from ..inference.progress import progress_bar

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StoppedError(Exception):
    """A signal has ended a run, whose state is saved.

    Args:
        number: of the signal.
        step: steps that are done.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by signal {number} after step {step}")
        self.number, self.step = number, step


class Interruption(TrainerCallback):
    """Turns the first signal into a checkpoint after the step under way, and the end of training.

    with Interruption(print).installed() as interruption:
        trainer.add_callback(interruption)
        trainer.train()

    A second signal does what it did before. Where one process of several is signalled, all stop at the same step.

    Args:
        say: takes a line about what is waited for.

    Attributes:
        number: of the signal; 0: none came.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.number = say, 0
        self._agreed = 0

    @contextmanager
    def installed(self) -> Iterator["Interruption"]:
        """Context in which signals are taken; only the main thread's, and none that is ignored."""
        before: dict[int, Any] = {}
        with suppress(ValueError):  # not the main thread
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, self._take)
        self._before = before
        try:
            yield self
        finally:
            self._restore()

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()
        self.say("Stopping after this step, with the state saved; a second signal stops at once")

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Ask for a checkpoint, but behind the last step of an epoch or of all, which is evaluated first."""
        number = torch.tensor(self.number, device=args.device)
        if args.world_size > 1:
            dist.all_reduce(number, dist.ReduceOp.MAX)
        self._agreed = int(number)
        evaluated = args.save_strategy == "epoch" and state.global_step >= state.max_steps
        if self._agreed and state.epoch % 1 and not evaluated:
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if self._agreed:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """End training.

        Raises:
            StoppedError: a signal has come.
        """
        if self._agreed:
            raise StoppedError(self._agreed, state.global_step)


class Curve(TrainerCallback):
    """Writes every logged figure to a file, one JSON object a line.

    Trainer's summary is left out: it knows no more than the steps since the checkpoint that was gone on with.

    Args:
        path: of the file. What it holds behind the checkpoint that is gone on with is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._write("w", state.log_history)

    def on_log(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._write("a", state.log_history[-1:])

    def _write(self, mode: str, entries: list[dict[str, Any]]) -> None:
        with self.path.open(mode, encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries if "train_runtime" not in entry)


class Progress(TrainerCallback):
    """Bars on stderr: of the steps, with the loss and the last evaluation's figure, and of each evaluation.

    Args:
        metric: figure of an evaluation that is shown.
        shown: False: nothing is drawn.
    """

    def __init__(self, metric: str, shown: bool) -> None:
        self.metric, self.shown = metric, shown
        self._bar: Any = None
        self._evaluation: Any = None
        self._figures: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._bar = progress_bar(state.max_steps, "Training", " steps", self.shown, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        if logs and "loss" in logs and self._bar is not None:
            self._figures["loss"] = f"{logs['loss']:.4f}"
            self._bar.set_postfix(self._figures, refresh=False)

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        if self._evaluation is None:
            self._evaluation = progress_bar(len(eval_dataloader), "Evaluating", " batches", self.shown)
            self._evaluation.leave = False
        self._evaluation.update(1)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **rest: Any) -> None:
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None
        value = (metrics or {}).get(f"eval_{self.metric}")
        if value is not None:
            self._figures[self.metric] = f"{value:.4f}"

    def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the bars, which a run that is stopped leaves open."""
        for bar in (self._evaluation, self._bar):
            if bar is not None:
                bar.close()
        self._bar = self._evaluation = None

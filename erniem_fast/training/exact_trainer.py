"""ExactTrainer: what every run of training does, whatever makes its batches."""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import nested_detach

from ..losses import IGNORED
from .objective import Objective, default_objective
from .optimizer import parameter_groups

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
SAVING = ".saving"
"""Folder that a checkpoint is written to before it takes its name."""
LITTLE = 2**20
"""Free bytes of a disk that is full."""
SAMPLES = "sample_ids"
"""Key of a batch with the places of its samples in the training data, which the model does not get."""
NO_PREDICTIONS = ("loss", "hidden_states", "attentions", "past_key_values", "mems")


class NonFiniteLossError(ValueError):
    """A loss of NaN or infinity, which ended a run. The message names the step, the samples and the saved state."""


class SavingError(OSError):
    """A checkpoint that could not be written. The message names the one before, which is whole."""


class ExactTrainer(Trainer):
    """Trainer whose steps are exact and whose runs end well.

    What it adds: the loss of a step is exact however it is split into batches and processes, for every head; the
    learning rate decays towards the embeddings; a loss of NaN or infinity ends the run with its state saved;
    checkpoints are there as a whole or not at all, and the best and the last one are kept.

    Args:
        model: an ErnieM model, or one that `padding_free` has changed.
        args: transformers' TrainingArguments.
        layer_decay: see `parameter_groups`.
        objective: what is learned; None: the loss of the model's head.
        name_of: name of a sample in messages, from its place in the training data.
        options: further arguments of Trainer.
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        layer_decay: float = 1.0,
        objective: Objective | None = None,
        name_of: Callable[[int], str] = str,
        **options: Any,
    ) -> None:
        # A second GPU without a process of its own would get half of a packed batch, cut anywhere.
        args._n_gpu = min(args.n_gpu, 1)
        super().__init__(model, args, **options)
        self.layer_decay, self.name_of = layer_decay, name_of
        self.objective = default_objective(model) if objective is None else objective
        self.model_accepts_loss_kwargs = True  # Trainer then leaves a loss by num_items_in_batch as it is

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of the arguments, with layer-wise learning rates."""
        optimizer: Any = self.optimizer  # type: ignore[has-type]
        if optimizer is None:
            model = self.model if model is None else model
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            rate = self.args.learning_rate
            groups = parameter_groups(model, rate, self.layer_decay, self.args.weight_decay)
            optimizer = self.optimizer = cls(groups, **options)
        return optimizer  # type: ignore[no-any-return]

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of a batch.

        Raises:
            NonFiniteLossError: its loss is NaN or infinite, on any process.
        """
        samples = inputs.pop(SAMPLES, [])
        loss = super().training_step(model, inputs, num_items_in_batch)
        wrong = ~torch.isfinite(loss).reshape(1)
        if self.args.world_size > 1:
            wrong = wrong.int()
            dist.all_reduce(wrong, dist.ReduceOp.MAX)
        if bool(wrong):
            self._end_for(loss, inputs, samples)
        return loss

    def _end_for(self, loss: Tensor, inputs: dict[str, Any], samples: list[int]) -> None:
        """Save what a loss was made of, and raise."""
        step = self.state.global_step + 1
        folder = Path(self.args.output_dir) / f"failed-step-{step}"
        rank = self.args.process_index
        names = [self.name_of(sample) for sample in samples]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(
                {"step": step, "loss": loss.cpu(), "samples": samples, "names": names, "batch": _on_cpu(inputs),
                 "rng": torch.get_rng_state()},
                folder / f"batch-{rank}.pt",
            )  # fmt: skip
            if self.args.should_save:
                # Of the model before this step: no optimizer has stepped since.
                self._save(str(folder))
                torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
                self.state.save_to_json(str(folder / "trainer_state.json"))
            saved = f"the batch and the model before it are in {str(folder)!r}"
        except (OSError, RuntimeError, SafetensorError) as error:
            saved = f"its state could not be saved ({_line(error)})"
        raise NonFiniteLossError(
            f"the loss is {float(loss)} at step {step}, of the samples {shown}; {saved}; "
            f"expected a finite loss: try a smaller learning rate, or float32"
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss."""
        loss, outputs = self.objective(model, inputs, num_items_in_batch)
        if num_items_in_batch is not None:
            loss = loss * self.args.world_size  # the gradients of the processes are averaged, their items summed
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Any, Any]:
        """The loss, the outputs but the loss, and the labels of a batch."""
        inputs = self._prepare_inputs(inputs)  # type: ignore[assignment]
        labels = tuple(inputs[name] for name in self.label_names if name in inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        loss = loss.detach().mean()
        if prediction_loss_only:
            return loss, None, None
        left_out = {*NO_PREDICTIONS, *(ignore_keys or ())}
        found = tuple(value for name, value in outputs.items() if name not in left_out and value is not None)
        return loss, nested_detach(_one_or_all(found)), nested_detach(_one_or_all(labels))

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> Any:
        """Items that the loss of a step is divided by, on all processes together."""
        counts = [self._count(batch) for batch in batch_samples]
        if not counts or any(count is None for count in counts):
            return None
        total = torch.stack([torch.as_tensor(count) for count in counts]).sum(0).to(device)
        if self.args.world_size > 1:
            dist.all_reduce(total)
        return total

    def _count(self, batch: dict[str, Any]) -> Any:
        """Items of a batch; an objective may count more of them than labels, in a tensor."""
        labelled = count_items(batch)
        count = getattr(self.objective, "count_items", None)
        return labelled if count is None or labelled is None else count(batch, labelled)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint beside the others, then let it take its name, and remove those that are not needed.

        Raises:
            SavingError: it can't be written. The one before is whole.
        """
        folder = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        made = folder / SAVING / name
        try:
            if self.args.should_save:
                shutil.rmtree(folder / SAVING, ignore_errors=True)
            self._wait()
            self._inside(SAVING, lambda: super(ExactTrainer, self)._save_checkpoint(model, trial))
            if Path(self.state.best_model_checkpoint or "") == made:
                self.state.best_model_checkpoint = str(folder / name)
            self._wait()  # until every process has written its random states
            if self.args.should_save:
                self.state.save_to_json(str(made / "trainer_state.json"))
                shutil.rmtree(folder / name, ignore_errors=True)
                os.replace(made, folder / name)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = _line(error)
            if isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < LITTLE:  # torch.save doesn't say so
                reason = f"the disk is full: {reason}"
            shutil.rmtree(folder / SAVING, ignore_errors=True)
            before = self.newest_checkpoint()
            kept = "there is none before" if before is None else f"{before!r} is whole, and can be gone on with"
            raise SavingError(f"{str(folder / name)!r} can't be saved ({reason}); {kept}") from error
        if self.args.should_save:
            shutil.rmtree(folder / SAVING, ignore_errors=True)
            self._remove_old(folder, name)
        self._wait()

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self._wait()  # the first process then gives the folder its name

    def _inside(self, name: str, save: Callable[[], None]) -> None:
        """Call `save` with a folder in output_dir for output_dir."""
        before = self.args.output_dir
        self.args.output_dir = os.path.join(before, name)
        try:
            save()
        finally:
            self.args.output_dir = before

    def _remove_old(self, folder: Path, newest: str) -> None:
        """Remove checkpoints but the newest and the best."""
        best = os.path.basename(self.state.best_model_checkpoint or newest)
        for path in folder.glob("checkpoint-*"):
            if CHECKPOINT.fullmatch(path.name) and path.name not in (newest, best):
                shutil.rmtree(path, ignore_errors=True)

    def newest_checkpoint(self) -> str | None:
        """The folder of the last checkpoint in output_dir."""
        found = [
            (int(match[1]), str(path))
            for path in Path(self.args.output_dir).glob("checkpoint-*")
            if (match := CHECKPOINT.fullmatch(path.name))
        ]
        return max(found)[1] if found else None

    def take_ended(self, checkpoint: str) -> bool:
        """Take a run whose training ended at a checkpoint, its best weights included: `train` would do a step more.

        Returns:
            False if it had not ended, so that nothing was taken.
        """
        state = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))
        control: Any = state.stateful_callbacks["TrainerControl"]
        if not control["args"]["should_training_stop"]:
            return False
        self.state = state
        best = state.best_model_checkpoint
        self._load_from_checkpoint(best if best is not None and os.path.isdir(best) else checkpoint)
        return True

    def _wait(self) -> None:
        """Wait for the other processes."""
        if self.args.world_size > 1:
            self.accelerator.wait_for_everyone()


def count_items(batch: Mapping[str, Any]) -> Tensor | int | None:
    """Items that the mean loss of a batch is taken over: labels, answers, or sequences; None where it has no labels.

    Of `labels` all that are not -100; of `start_positions` those that are not negative where they are one a sequence,
    and where they are one a token the sequences that have any but -100.
    """
    if "labels" in batch:
        return (batch["labels"] != IGNORED).sum()
    starts = batch.get("start_positions")
    if starts is None:
        return None
    return (starts >= 0).sum() if starts.dim() == 1 else (starts != IGNORED).any(-1).sum()


def _one_or_all(values: tuple[Any, ...]) -> Any:
    """What Trainer expects of several outputs or labels: one alone, none as None."""
    return None if not values else values[0] if len(values) == 1 else values


def _on_cpu(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in batch.items()}


def _line(error: Exception) -> str:
    """One line of an error."""
    return " ".join(str(error).split())[:200] or type(error).__name__

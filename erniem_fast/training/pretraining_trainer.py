"""PretrainingTrainer: transformers' Trainer on a mixture of objectives, and what watches a run."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

from ..files.errors import InputError
from ..losses import IGNORED
from .exact_trainer import SAMPLES, ExactTrainer
from .mixing import Batch, Mixture, Part, ahead, once
from .objective import head_loss

BATCH = "pretraining_batch"
"""Key of a batch's `Batch`, which the model does not get."""


class PretrainingTrainer(ExactTrainer):
    """Trainer on batches that a mixture makes without an end.

    Its checkpoints hold the mixture's position, each rank's own, so that a resumed run goes on with the very next
    batch. It logs the loss of each objective, too, a mean over its labels since it was logged last.

    Args:
        model: gives a loss, and takes what the objectives make.
        args: transformers' TrainingArguments with `max_steps`.
        mixture: batches of this rank.
        evaluation: objectives of the evaluation, whose streams are read once; may be empty.
        tokenizer: makes token ids of texts; saved with each checkpoint.
        batch_tokens: most tokens of a batch of the evaluation.
        callbacks: of Trainer.
    """

    def __init__(
        self, model: Any, args: Any, mixture: Mixture, evaluation: Sequence[Part], tokenizer: Any, batch_tokens: int,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:  # fmt: skip
        args.ignore_data_skip = True  # the mixture's own position says where to go on
        super().__init__(model, args, objective=head_loss, processing_class=tokenizer, callbacks=list(callbacks))
        self.remove_callback(PrinterCallback)
        self.mixture, self.evaluation, self.eval_tokens = mixture, list(evaluation), batch_tokens
        self.position = mixture.state_dict()
        self.tokens = self.cut = 0
        self._sums: dict[str, Tensor] = {}

    def get_train_dataloader(self) -> Any:
        """The mixture's batches, made ahead by a thread; each rank has its own."""
        return _Batches(self.mixture)

    def num_examples(self, dataloader: Any) -> int:
        """Unknown: there is no end."""
        return 0

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of a batch; see `ExactTrainer`."""
        batch: Batch = inputs.pop(BATCH)
        labels = (inputs["labels"] != IGNORED).sum()
        loss = super().training_step(model, inputs, num_items_in_batch)
        items = labels if num_items_in_batch is None else num_items_in_batch / self.args.world_size
        sums = torch.stack([loss.detach().double() * items, labels.to(loss.device).double()])
        self._sums[batch.objective] = self._sums[batch.objective] + sums if batch.objective in self._sums else sums
        self.position = batch.state
        self.tokens += batch.tokens
        self.cut += batch.cut
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the loss of each objective and the number of tokens so far."""
        if "loss" in logs:
            logs |= self._losses(self._sums)
            logs["tokens"] = self.total(self.tokens)
            self._sums = {}
        epoch, self.state.epoch = self.state.epoch, None  # which Trainer makes up where there is no end
        super().log(logs, start_time)
        self.state.epoch = epoch

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The loss of each objective of the evaluation, a mean over its labels, and their mean by the weights."""
        sums: dict[str, Tensor] = {}
        model = self.model
        assert model is not None
        model.eval()
        for part in self.evaluation:
            sums[part.name] = torch.zeros(2, dtype=torch.float64, device=self.args.device)
            batches = once(
                part, self.processing_class, batch_tokens=self.eval_tokens, seed=self.args.seed,
                rank=self.args.process_index,
            )  # fmt: skip
            for batch in batches:
                inputs = self._prepare_inputs(batch.inputs)
                with torch.no_grad(), self.accelerator.autocast():
                    loss = model(**inputs).loss
                labels = (inputs["labels"] != IGNORED).sum()
                sums[part.name] += torch.stack([loss.double() * labels, labels.double()])
        model.train()
        losses = self._losses(sums)
        weights = {f"{part.name}_loss": part.weight for part in self.evaluation if f"{part.name}_loss" in losses}
        metrics = {f"eval_{name}": losses[name] for name in weights}
        if weights:
            mean = sum(losses[name] * weight for name, weight in weights.items()) / sum(weights.values())
            metrics = {"eval_loss": mean, **metrics}
        self.log(metrics)
        control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        self.control = control
        return metrics

    def _losses(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean losses over the labels of all ranks, which all have the same objectives."""
        found = {}
        for name in sorted(sums):
            total = self._reduced(sums[name])
            if total[1] > 0:
                found[f"{name}_loss"] = float(total[0] / total[1])
        return found

    def total(self, number: int) -> int:
        """Sum of a number over the ranks."""
        return int(self._reduced(torch.tensor(number, device=self.args.device)))

    def _reduced(self, value: Tensor) -> Tensor:
        """Sum over the ranks."""
        return self.accelerator.reduce(value.clone(), "sum") if self.args.world_size > 1 else value

    def _save_rng_state(self, output_dir: str) -> None:
        """Save what each rank needs to go on: its generators and its place in the mixture."""
        place = {"world_size": self.args.world_size, "tokens": self.tokens, "cut": self.cut, **self.position}
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        path = Path(output_dir) / f"mixture-{self.args.process_index}.json"
        path.write_text(json.dumps(place), encoding="utf-8")
        super()._save_rng_state(output_dir)

    def resume(self, checkpoint: str) -> None:
        """Set the mixture to where a checkpoint was saved.

        Raises:
            InputError: it was saved by another number of processes, or read other files.
        """
        path = Path(checkpoint) / f"mixture-{self.args.process_index}.json"
        try:
            place = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"checkpoint {checkpoint!r}: holds no {path.name} ({error})") from error
        if place["world_size"] != self.args.world_size:
            raise InputError(
                f"checkpoint {checkpoint!r}: was saved by {place['world_size']} processes, this run has "
                f"{self.args.world_size}; expected as many"
            )
        self.mixture.load_state_dict(place)
        self.position = self.mixture.state_dict()
        self.tokens, self.cut = place["tokens"], place["cut"]


class _Batches:
    """The loader that Trainer iterates."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in ahead(self.mixture):
            yield {**batch.inputs, SAMPLES: list(batch.places), BATCH: batch}


class EveryFewSteps(TrainerCallback):
    """Evaluation every so many steps and at the end, and a logged line with every checkpoint.

    Args:
        eval_every: steps; None: never.
    """

    def __init__(self, eval_every: int | None) -> None:
        self.eval_every = eval_every

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if self.eval_every is not None:
            ended = state.global_step >= state.max_steps
            control.should_evaluate = ended or state.global_step % self.eval_every == 0
        # A resumed run has no losses of the steps before its checkpoint.
        control.should_log |= control.should_save

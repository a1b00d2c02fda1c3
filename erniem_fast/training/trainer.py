"""PackedTrainer: transformers' Trainer with batches by token budget.

trainer = PackedTrainer(model, arguments, train_dataset=features, data_collator=PackedCollator.for_model(model),
                        batch_tokens=4096, layer_decay=0.8)
trainer.train(resume_from_checkpoint=trainer.newest_checkpoint())
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from ..files.errors import InputError
from .exact_trainer import SAMPLES, ExactTrainer
from .sampler import TokenBudgetBatchSampler, prepare_loader


class PackedTrainer(ExactTrainer):
    """Trainer on samples in batches of about as many tokens, on each process.

    A run that is resumed from a checkpoint has the loss curve, bit for bit, of one that was never stopped.

    Args:
        model: an ErnieM model, or one that `padding_free` has changed.
        args: transformers' TrainingArguments; the batch sizes of training are not used.
        train_dataset: features, a list or anything else with a length and items.
        batch_tokens: most tokens of a batch of training, on each process; a longer sample makes a batch alone.
        options: further arguments of ExactTrainer.
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        train_dataset: Sequence[Mapping[str, Any]],
        batch_tokens: int,
        **options: Any,
    ) -> None:
        super().__init__(model, args, train_dataset=_Numbered(train_dataset), **options)
        lengths = [num_tokens(feature) for feature in train_dataset]
        seed = args.data_seed if args.data_seed is not None else args.seed
        try:
            self._sampler = TokenBudgetBatchSampler(lengths, batch_tokens, seed=seed, num_replicas=args.world_size)
        except ValueError as error:
            what = "TRAIN" if str(error).startswith("lengths") else f"--batch-tokens {batch_tokens}"
            raise InputError(f"{what}: {error}") from error

    def get_train_dataloader(self) -> DataLoader:
        """Batches of about `batch_tokens` tokens, other ones in each epoch."""
        workers = self.args.dataloader_num_workers
        return prepare_loader(
            self.accelerator, self.train_dataset, self._sampler, _WithSamples(self.data_collator), num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=workers > 0 and self.args.dataloader_persistent_workers,
        )  # fmt: skip

    @property
    def batch_sizes(self) -> np.ndarray:
        """Samples of each batch of an epoch, of all processes."""
        return self._sampler.batch_sizes

    def num_examples(self, dataloader: DataLoader) -> int:
        """Number of samples."""
        return len(dataloader.dataset)  # type: ignore[arg-type]


class _Numbered(Sequence[Mapping[str, Any]]):
    """Features that know their places."""

    def __init__(self, features: Sequence[Mapping[str, Any]]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Any) -> Any:
        return {**self.features[index], SAMPLES: index}


class _WithSamples:
    """A collator whose batches name their samples."""

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, features: list[Any]) -> dict[str, Any]:
        samples = [int(feature[SAMPLES]) for feature in features]
        rest = [{name: value for name, value in feature.items() if name != SAMPLES} for feature in features]
        return {**self.collator(rest), SAMPLES: samples}


def num_tokens(feature: Mapping[str, Any]) -> int:
    """Tokens of a sample, those of all its sequences."""
    ids = feature["input_ids"]
    return sum(map(len, ids)) if len(ids) and np.ndim(ids[0]) else len(ids)

"""Batches without padding, for any head and for transformers' Trainer.

model = ErnieMForTokenClassification.from_pretrained(name)
Trainer(model, arguments, train_dataset=dataset, data_collator=PackedCollator.for_model(model))
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..losses import IGNORED
from ..modeling import ErnieMModel
from ..packed import PackedEncoder

Feature = Mapping[str, Any]
LABELS = ("labels", "start_positions", "end_positions")


class PackedCollator:
    """Puts the sequences of a batch end to end, with the labels of any head beside them.

    The model computes on real tokens only, and gives one row a sample all the same, as for a padded batch: logits of
    tokens are (num_sequences, seq_len, ...). So `Trainer.evaluate` and `predict` work as they do with padded batches.
    Only labels of tokens are padded, with -100.

    Args:
        first_position: position of a sequence's first token, `limits.first_position` of the encoder.
        token_id_names: further ids of the tokens that the model takes, such as "token_type_ids", of samples that have
            them.
    """

    def __init__(self, first_position: int = 0, token_id_names: Sequence[str] = ()) -> None:
        self.first_position, self.token_id_names = first_position, tuple(token_id_names)

    @classmethod
    def for_model(cls, model: Any) -> "PackedCollator":
        """Collator of an ErnieM model or of one that `padding_free` changed, heads and adapters included.

        Raises:
            TypeError: there is no such encoder in it.
        """
        for module in model.modules():
            if isinstance(module, ErnieMModel | PackedEncoder):
                return cls(module.limits.first_position, sorted(module.limits.token_ids))
        raise TypeError(f"model must hold an ErnieM or padding_free encoder, got {type(model).__name__}")

    def __call__(self, features: Sequence[Feature]) -> dict[str, Any]:
        """Make a batch.

        Args:
            features: of each sample `input_ids`, special tokens included, or for multiple choice a list of them; the
                further ids of its tokens; and labels:
                `labels`: an integer or a number; a list of integers, one a token; a list of floats or bools, one a
                label;
                `start_positions`, `end_positions`: integers, or lists of numbers, one a token.
                Anything else is left out.

        Returns:
            The arguments of the model's forward: labels, (num_samples,), (num_samples, num_labels) or of
            `padded_shape`; input_ids, position_ids and further ids (1, total_tokens) int64; cu_seq_lens_q and
            cu_seq_lens_k (num_sequences + 1,) int32; max_length_q and max_length_k; padded_shape.

        Raises:
            ValueError: no sample, samples of different kinds, or labels that are not one a token.
        """
        if not features:
            raise ValueError("features must hold at least one sample, got none")
        rows, choices = _sequences(features, "input_ids")
        lengths = [len(row) for row in rows]
        longest = max(lengths)
        # Trainer takes the first tensor's first dimension for the number of samples.
        batch: dict[str, Any] = {
            name: _labels(name, features, lengths, longest) for name in LABELS if name in features[0]
        }
        batch["input_ids"] = _joined(rows)
        batch["position_ids"] = _joined([np.arange(length) + self.first_position for length in lengths])
        for name in self.token_id_names:
            if name in features[0]:
                batch[name] = _joined(_sequences(features, name)[0])
        offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        shape = (len(rows), longest) if choices is None else (len(features), choices, longest)
        return batch | {
            "cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": longest, "max_length_k": longest,
            "padded_shape": shape,
        }  # fmt: skip


def _column(name: str, features: Sequence[Feature]) -> list[Any]:
    for index, feature in enumerate(features):
        if name not in feature:
            raise ValueError(f"features[{index}] must have {name!r}, as features[0] has; got {sorted(feature)}")
    return [feature[name] for feature in features]


def _sequences(features: Sequence[Feature], name: str) -> tuple[list[np.ndarray], int | None]:
    """Ids of all sequences, and the number of choices of each sample, which is None where it is one sequence."""
    column = _column(name, features)
    if not len(column[0]) or np.ndim(column[0][0]) == 0:
        return [np.asarray(row, np.int64) for row in column], None
    choices = len(column[0])
    for index, sample in enumerate(column):
        if len(sample) != choices:
            raise ValueError(f"features[{index}][{name!r}] must hold {choices} choices, as features[0]'s does, "
                             f"got {len(sample)}")  # fmt: skip
    return [np.asarray(row, np.int64) for sample in column for row in sample], choices


def _joined(rows: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(rows))[None]


def _labels(name: str, features: Sequence[Feature], lengths: list[int], longest: int) -> Tensor:
    column = [np.asarray(value) for value in _column(name, features)]
    floating = any(value.dtype.kind == "f" for value in column)
    dtype = np.float32 if floating else np.int64
    a_label = name == "labels" and (floating or column[0].dtype.kind == "b")
    if column[0].ndim == 0 or a_label:
        return torch.from_numpy(np.stack(column).astype(np.float32 if a_label else dtype))
    if len(column) != len(lengths):
        raise ValueError(f"{name} must be one integer a sample of several choices, got {column[0].size} of them")
    padded = np.full((len(column), longest), IGNORED, dtype)
    for index, (values, length) in enumerate(zip(column, lengths, strict=True)):
        if values.shape != (length,):
            raise ValueError(
                f"features[{index}][{name!r}] must hold {length} integers, one a token, got shape {values.shape}"
            )
        padded[index, :length] = values
    return torch.from_numpy(padded)

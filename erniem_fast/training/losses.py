"""Losses of other families' heads, summed over the items of an optimiser's step.

transformers' heads give the mean of their batch and ignore `num_items_in_batch`. Where batches are accumulated that is
a mean of means, in which a label counts more if its batch has few. ErnieM's heads, and the heads for masked LM and
question answering of `padding_free`, need none of this.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..losses import NumItems, average, cross_entropy


def compute_loss_func(problem_type: str | None = None) -> Callable[..., Tensor]:
    """Make the `compute_loss_func` of transformers' Trainer for a head that `padding_free` changed.

    Args:
        problem_type: the head's `config.problem_type`; None: "regression" for labels of floats that are one a sample,
            "multi_label_classification" for other floats, else "single_label_classification", of tokens, too.

    Returns:
        A function of the model's outputs, the labels as `PackedCollator` gives them, and `num_items_in_batch`.
    """

    def loss_of(outputs: Any, labels: Tensor | None, num_items_in_batch: NumItems = None) -> Tensor:
        if labels is None:
            raise ValueError("labels must be in the batch, as 'labels', got none")
        logits = outputs["logits"]
        kind = problem_type or _kind(labels)
        if kind == "single_label_classification":
            return cross_entropy(logits, labels, num_items_in_batch)
        loss = F.mse_loss if kind == "regression" else F.binary_cross_entropy_with_logits
        losses = loss(logits, labels.reshape(logits.shape).to(logits.dtype), reduction="none")
        return average(losses, None, num_items_in_batch)

    return loss_of


def _kind(labels: Tensor) -> str:
    if not labels.is_floating_point():
        return "single_label_classification"
    return "regression" if labels.dim() == 1 else "multi_label_classification"

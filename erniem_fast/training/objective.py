"""Objectives: what a step of training learns, from a batch to a loss."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..pretrained import ErnieMPreTrainedModel
from .losses import compute_loss_func

Objective = Callable[[Any, dict[str, Any], Tensor | int | None], tuple[Tensor, Any]]
"""From (model, batch, num_items_in_batch) to (loss, outputs).

`model` may be wrapped, by DistributedDataParallel or torch.compile. The loss is a sum over num_items_in_batch, or a
mean where that is None; outputs is a dict or ModelOutput, whose values but the loss and hidden states are the
predictions. Objectives may be put around others: distillation adds its own terms to the loss of a head.
"""


def head_loss(model: Any, batch: dict[str, Any], num_items: Tensor | int | None) -> tuple[Tensor, Any]:
    """The loss of a head that takes num_items_in_batch."""
    outputs = model(**batch) if num_items is None else model(**batch, num_items_in_batch=num_items)
    return outputs["loss"], outputs


def default_objective(model: Any) -> Objective:
    """The loss of a model's head: ErnieM's own, or `compute_loss_func` of the logits of a head of another family.

    Args:
        model: unwrapped.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if isinstance(inner, ErnieMPreTrainedModel):
        return head_loss
    loss_of = compute_loss_func(inner.config.problem_type)

    def loss_of_logits(model: Any, batch: dict[str, Any], num_items: Tensor | int | None) -> tuple[Tensor, Any]:
        if "labels" not in batch:  # question answering, whose head of another family takes num_items_in_batch, too
            return head_loss(model, batch, num_items)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        outputs = model(**inputs)
        return loss_of(outputs, batch["labels"], num_items), outputs

    return loss_of_logits

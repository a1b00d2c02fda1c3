"""Weights of query, key and value side by side in memory, so that no forward of an inference copies them."""

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from ..fusion import as_one, is_plain

NAMES = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))
"""Names of the projections in ErnieM; in BERT and its kin; in DistilBERT and XLM."""


def join_projections(model: nn.Module) -> int:
    """Store the weights of each attention's query, key and value next to each other, and so their biases.

    A forward without gradients then reads the three as one; else it concatenates them first. Values and parameters stay
    what they are, in the state dict as well: only their memory is new, so do it before you capture a graph. Whatever
    gives a weight memory of its own again, such as `model.to(dtype)` or a copy of the model, undoes it, and nothing
    else changes.

    Args:
        model: any module; linear layers that are not plain (adapters, quantised or hooked ones) are left alone.

    Returns:
        Number of attentions whose projections are stored so.
    """
    joined = 0
    for module, names in product(model.modules(), NAMES):
        layers: list[Any] = [getattr(module, name, None) for name in names]
        if all(is_plain(layer, nn.Linear) for layer in layers):
            weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
            if weights[0].dim() == 2 and _are_alike(weights) and _are_alike(biases):
                joined += _join(weights) and _join(biases)
    return joined


def _are_alike(tensors: list[Tensor]) -> bool:
    kinds = {(tensor.shape, tensor.dtype, tensor.device, tensor.is_inference()) for tensor in tensors}
    return len(kinds) == 1 and not tensors[0].is_meta


def _join(tensors: list[Tensor]) -> bool:
    """Give tensors memory that they share in this order; False if they cannot: one of them is there twice."""
    with torch.inference_mode(tensors[0].is_inference()), torch.no_grad():
        if as_one(tensors) is None:
            parts = torch.stack([tensor.data for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.data = part
        return as_one(tensors) is not None

"""From a model's logits to scores: finite, float64, on the host."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def to_numpy(values: Tensor | np.ndarray) -> np.ndarray:
    """Float64 on the host, of a tensor of any dtype and device."""
    array: np.ndarray = torch.as_tensor(values).cpu().double().numpy()
    return array


def check_finite(scores: np.ndarray, names: Sequence[str]) -> None:
    """Raise a ValueError that names the first item with NaN or infinity.

    Args:
        scores: (len(names), ...).
        names: of the items.
    """
    finite = np.isfinite(scores).all(tuple(range(1, scores.ndim)))
    if not finite.all():
        raise ValueError(f"model must give finite scores, got NaN or infinity for {names[int(finite.argmin())]}")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last dimension."""
    powers: np.ndarray = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Elementwise, without overflow."""
    powers = np.exp(-np.abs(logits))
    return np.where(logits < 0, powers, 1) / (1 + powers)

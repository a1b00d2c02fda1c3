"""Products by oneDNN as torch's compiler calls them: with an activation or a sum inside, and on packed weights.

The operations are private to torch: they are tried once for each dtype, and where they are missing, refuse, or are
wrong, torch's public operations compute the same.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

DTYPES = (torch.bfloat16, torch.float16)
"""Those that oneDNN computes faster with the activation inside. In float32 MKL's product and a pass over a piece of
rows that is still in the cache take less."""
TOLERANCE = 4.0
"""Greatest error of the trial in units of the dtype's rounding, of values near 1."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """activation(x weight^T + bias); only where `is_available` of the dtype.

    Args:
        x: (rows, in_features).
        weight: (out_features, in_features), or packed.
        bias: (out_features,), or None.
        activation: "gelu", the exact one, "relu" or "none".

    Returns:
        (rows, out_features).
    """
    operation: Any = torch.ops.mkldnn._linear_pointwise
    return operation(x, weight, bias, activation, [], "none")  # type: ignore[no-any-return]


def add_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """residual (rows, out_features) + x weight^T + bias, else as `linear`."""
    operation: Any = torch.ops.mkldnn._linear_pointwise
    return operation.binary(x, residual, weight, bias, "add")  # type: ignore[no-any-return]


class _Packed(NamedTuple):
    """The rows of some weights in the order in which oneDNN reads them.

    Attributes:
        weights: those that were packed. They hold on to the memory, whose address so stays theirs.
        versions: how often each had been written to.
        packed: opaque.
    """

    weights: list[Tensor]
    versions: list[int]
    packed: Tensor


_packed = WeakTensorKeyDictionary()
"""By the first of the weights."""


def pack(weights: Sequence[Tensor]) -> bool:
    """Keep a copy of some weights, stacked, in oneDNN's order for `packed`; False where there is no such order.

    Args:
        weights: (out_features, in_features) of each, on a CPU, of one dtype for which `is_available`.
    """
    first = weights[0]
    # Those that were made in inference mode don't count how often they are written to.
    if not is_available(first.dtype) or any(weight.is_inference() for weight in weights):
        return False
    kept = [weight.detach() for weight in weights]
    _packed[first] = _Packed(kept, [weight._version for weight in weights], _in_order(torch.cat(kept)))
    return True


def _in_order(weight: Tensor) -> Tensor:
    operation: Any = torch.ops.mkldnn._reorder_linear_weight
    return operation(weight)  # type: ignore[no-any-return]


def packed(weights: Sequence[Tensor]) -> Tensor | None:
    """What `pack` made of exactly these weights, unless they were replaced or written to; else None."""
    kept: _Packed | None = _packed.get(weights[0])
    if kept is None or len(kept.weights) != len(weights):
        return None
    for weight, then, version in zip(weights, kept.weights, kept.versions, strict=True):
        if weight.data_ptr() != then.data_ptr() or weight.shape != then.shape or weight.dtype != then.dtype:
            return None
        if weight.is_inference() or weight._version != version:
            return None
    return kept.packed


@functools.cache
def is_available(dtype: torch.dtype) -> bool:
    """True if this file's operations are there for a dtype and give the right values."""
    if dtype not in DTYPES or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 24), (40, 24), (40,), (5, 40))
    x, weight, bias, residual = (torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
    weight = weight / 5
    product = F.linear(x.double(), weight.double(), bias.double())
    try:
        with torch.no_grad():
            for one in (weight, _in_order(weight)):
                found = [linear(x, one, bias, name) for name in ("none", "gelu", "relu")]
                found.append(add_linear(x, one, bias, residual))
                expected = [product, F.gelu(product), F.relu(product), residual.double() + product]
                for ours, right in zip(found, expected, strict=True):
                    scale = right.abs().clamp(min=1)
                    if not ((ours.double() - right).abs() <= TOLERANCE * torch.finfo(dtype).eps * scale).all():
                        return False
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return True

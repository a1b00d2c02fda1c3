"""Linear layer and activation in one product by oneDNN, as torch's compiler calls it.

The operation is private to torch: it is tried once for each dtype, and where it is missing, refuses, or is wrong,
torch's public operations compute the same.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16)
"""Those that oneDNN computes faster with the activation inside. In float32 MKL's product and a pass over a piece of
rows that is still in the cache take less."""
TOLERANCE = 4.0
"""Greatest error of the trial in units of the dtype's rounding, of values near 1."""


def activated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """activation(x weight^T + bias); only where `is_available` of the dtype.

    Args:
        x: (rows, in_features).
        weight: (out_features, in_features).
        bias: (out_features,), or None.
        activation: "gelu", the exact one, or "relu".

    Returns:
        (rows, out_features).
    """
    operation: Any = torch.ops.mkldnn._linear_pointwise
    return operation(x, weight, bias, activation, [], "none")  # type: ignore[no-any-return]


@functools.cache
def is_available(dtype: torch.dtype) -> bool:
    """True if `activated_linear` is there for a dtype and gives the right values."""
    if dtype not in DTYPES or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((5, 24), (40, 24), (40,)))
    weight = weight / 5
    try:
        with torch.no_grad():
            for name, function in (("gelu", F.gelu), ("relu", F.relu)):
                found = activated_linear(x, weight, bias, name)
                expected = function(F.linear(x.double(), weight.double(), bias.double()))
                scale = expected.abs().clamp(min=1)
                if not ((found.double() - expected).abs() <= TOLERANCE * torch.finfo(dtype).eps * scale).all():
                    return False
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return True

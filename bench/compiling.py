"""torch.compile for the peers: once for all sizes."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch._dynamo
import torch._functorch.config


@lru_cache
def _prepare() -> None:
    # A graph that is run through again and again, as the backward pass alone is, may not give its buffers away.
    torch._functorch.config.donated_buffer = False
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else it would go on in eager mode
    torch._dynamo.config.specialize_float = True  # a dropout probability is known, as in a model


def backend(device: str) -> str:
    """A CPU has nothing to compile for here: the dry run traces and goes on in eager mode."""
    return "inductor" if device == "cuda" else "aot_eager"


@lru_cache
def compiled(function: Callable[..., Any], device: str, varying: tuple[tuple[int, ...], ...]) -> Callable[..., Any]:
    """`function` compiled once for any batch, and for each size of the model by itself.

    Args:
        function: of tensors, then numbers.
        device: "cpu" or "cuda".
        varying: of each tensor, the dimensions whose sizes differ from batch to batch.
    """
    _prepare()
    inner = torch.compile(function, fullgraph=True, dynamic=True, backend=backend(device))

    def call(*arguments: Any) -> Any:
        for argument, dims in zip(arguments, varying, strict=False):
            if not hasattr(argument, "_dynamo_static_indices"):
                for dim in set(range(argument.dim())).difference(dims):
                    torch._dynamo.mark_static(argument, dim)
        return inner(*arguments)

    return call


def compile_layers(layers: Any, device: str) -> None:
    """Compile each of a model's layers in place: they share their code, which is compiled once."""
    _prepare()
    for layer in layers:
        layer.compile(fullgraph=True, dynamic=True, backend=backend(device))

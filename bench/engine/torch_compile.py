"""torch.compile for the peers: one graph for all sizes of a batch."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch._dynamo
import torch._functorch.config

from .shapes import Setting, Shape


@lru_cache
def _prepare() -> None:
    # The backward pass alone runs one graph again and again: it may not give its buffers away.
    torch._functorch.config.donated_buffer = False
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else it would go on in eager mode
    torch._dynamo.config.specialize_float = True  # a dropout probability is a constant, as in a model


def backend(device: str) -> str:
    """Backend of torch.compile; a CPU's only traces, since only a dry run compiles there."""
    return "inductor" if device == "cuda" else "aot_eager"


@lru_cache
def compiled(function: Callable[..., Any], device: str, varying: tuple[tuple[int, ...], ...]) -> Callable[..., Any]:
    """Function compiled once for all batches, and once for each size of the model.

    Args:
        function: takes tensors, then numbers.
        device: "cpu" or "cuda".
        varying: for each tensor, the dimensions whose sizes differ from batch to batch.
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
    """Compile each of a model's layers in place; their shared code is compiled once."""
    _prepare()
    for layer in layers:
        layer.compile(fullgraph=True, dynamic=True, backend=backend(device))


def needs_compiler(shape: Shape, setting: Setting) -> str | None:
    """Reason why nothing is compiled, or None: on a CPU only a dry run compiles."""
    return None if setting.device == "cuda" or setting.tiny else "is compiled for GPUs only"

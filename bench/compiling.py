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


def backend(device: str) -> str:
    """A CPU has nothing to compile for here: the dry run traces and goes on in eager mode."""
    return "inductor" if device == "cuda" else "aot_eager"


@lru_cache
def compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """`function` compiled, with sizes that may change."""
    _prepare()
    return torch.compile(function, fullgraph=True, dynamic=True, backend=backend(device))


def compile_layers(layers: Any, device: str) -> None:
    """Compile each of a model's layers in place: they share their code, which is compiled once."""
    _prepare()
    for layer in layers:
        layer.compile(fullgraph=True, dynamic=True, backend=backend(device))

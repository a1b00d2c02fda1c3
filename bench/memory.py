"""How much memory a training step holds."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")


def training_memory(
    model: nn.Module, batches: Sequence[T], forward: Callable[[T], Tensor], step: Callable[[T], None]
) -> dict[str, int]:
    """The most bytes over the batches.

    Args:
        model: whose parameters don't count.
        batches: that it is run on.
        forward: computes the output of a batch, with its graph.
        step: forward and backward.

    Returns:
        saved_for_backward: distinct storages that autograd holds after a forward, parameters left out.
        peak_step: the most that is allocated during forward and backward beyond what was there before; the gradients
            of the parameters are part of it.
    """
    return {
        "saved_for_backward": max(saved_bytes(model, partial(forward, batch)) for batch in batches),
        "peak_step": max(peak_bytes(partial(step, batch)) for batch in batches),
    }


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages that a forward saves for its backward, without those of parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        # The graph keeps what is returned here, so that no address comes twice.
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    total = sum(saved.values())
    del output
    return total


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes allocated at once during a call, beyond those before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    now = peak = 0
    for event in sorted((event for event in results.events() if event.name() == "[memory]"), key=_start):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def _start(event: torch._C._autograd._KinetoEvent) -> int:
    return event.start_ns()

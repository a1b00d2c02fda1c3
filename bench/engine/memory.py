"""Memory that a call takes, and that a forward keeps for its backward."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile


def activation_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward keeps for its backward: allocated on a GPU, saved by autograd on a CPU.

    On a CPU: distinct storages that autograd saves, those of the model's parameters excluded.
    """
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        output = forward()
        kept = torch.cuda.memory_allocated() - before
        del output
        return kept
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
    """Most bytes allocated at once during a call, beyond those before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    now = peak = 0
    changes = [event for event in results.events() if event.name() == "[memory]"]
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak

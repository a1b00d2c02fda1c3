"""The end of a run's processes."""

import gc

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def end_process_group() -> None:
    """End torch.distributed's default process group, if there is one, so that the process can end in good order.

    Gloo's threads let go of an exchange's tensors a moment behind it. One that does so while Python ends aborts the
    process, "terminate called without an active exception", although all its work is done: pytorch/pytorch#190489.
    Every process calls this behind its last exchange, from where nothing refers to a trainer any more.

    Raises:
        RuntimeError: a DistributedDataParallel exists, as it does for as long as its trainer. Were it outlived by the
            group's threads, its own end could wait for them for ever.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    gc.collect()  # a wrapped model refers to itself
    if any(issubclass(type(value), DistributedDataParallel) for value in gc.get_objects()):
        raise RuntimeError(
            "end_process_group: a model in DistributedDataParallel exists, as in a Trainer; expected it to be gone: "
            "call this outside of the function that trains"
        )
    dist.destroy_process_group()

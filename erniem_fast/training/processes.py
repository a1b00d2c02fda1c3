"""The end of a run's processes."""

import gc
import warnings

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def end_process_group() -> None:
    """End torch.distributed's default process group, if there is one, so that the process can end in good order.

    Gloo's threads let go of an exchange's tensors a moment behind it. One that does so while Python ends aborts the
    process, "terminate called without an active exception", although all its work is done: pytorch/pytorch#190489.
    Every process calls this behind its last exchange, from where nothing refers to a trainer any more: a model in
    DistributedDataParallel that outlives its group can wait for ever for the threads, which wait for Python. While one
    exists, this warns (RuntimeWarning), and leaves the group as it is.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    gc.collect()  # a wrapped model refers to itself
    if any(issubclass(type(value), DistributedDataParallel) for value in gc.get_objects()):
        warnings.warn(
            "end_process_group: a DistributedDataParallel exists, as in a Trainer; its group is left as it is: "
            "call this outside of the function that trains",
            RuntimeWarning, stacklevel=2,
        )  # fmt: skip
        return
    dist.destroy_process_group()

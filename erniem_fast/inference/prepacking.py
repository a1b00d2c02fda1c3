"""Weights in the order in which oneDNN reads them, so that no forward of an inference on a CPU sorts them first."""

from torch import nn

from ..fusion import is_plain
from ..layer_parts import AttentionParts
from ..ops import onednn
from .layers import layers_of


def prepack_weights(model: nn.Module) -> int:
    """Keep a second copy of the weights of an encoder's layers, which forwards without gradients on a CPU read.

    In bfloat16 and float16 alone; the copy takes as much memory as those weights do. The model is what it was, in its
    state dict too. A copy is left aside once its weight was replaced or written to, as `load_state_dict`, optimizers
    and `model.to` do; a write through `weight.data` alone leaves no trace: call this again after it.

    Args:
        model: any module; layers that are not plain (adapters, quantised or hooked ones) are left alone.

    Returns:
        Number of linear layers whose weights are packed.
    """
    count = 0
    for layer in layers_of(model):
        groups: list[list[nn.Module]] = [[layer.linear1], [layer.linear2]]
        if layer.out is not None:
            groups.append([layer.out])
        if isinstance(layer.attention, AttentionParts):
            groups.append([layer.attention.query, layer.attention.key, layer.attention.value])
        for group in groups:
            count += _pack(group)
    return count


def _pack(group: list[nn.Module]) -> int:
    weights = [module.weight for module in group if is_plain(module, nn.Linear)]
    kinds = {(weight.dtype, weight.device.type, weight.dim(), weight.is_contiguous()) for weight in weights}
    if len(weights) < len(group) or len(kinds) > 1:
        return 0
    dtype, device, dims, contiguous = kinds.pop()
    taken = dtype in onednn.DTYPES and device == "cpu" and dims == 2 and contiguous
    return len(weights) if taken and onednn.pack(weights) else 0

"""Linear layers in int8: weights by output, activations by tensor, at each call anew.

The products are oneDNN's, through torch's quantised operations; what is between them stays in float32.
"""

import warnings
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..fusion import is_plain
from .layers import layers_of

ENGINE = "onednn"
M = TypeVar("M", bound=nn.Module)


class Int8Linear(nn.Module):
    """A linear layer whose product is computed in int8.

    Weights: symmetric, one scale for each output. Activations: 8 bits over the range of the values at hand.

    Args:
        linear: float32, on the CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        scales = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        bias = None if linear.bias is None else linear.bias.detach()
        before = torch.backends.quantized.engine
        with warnings.catch_warnings():
            # torch moves its quantised tensors to torchao, which has no product of this kind without a compiler.
            warnings.simplefilter("ignore")
            torch.backends.quantized.engine = ENGINE
            try:
                quantised = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
                self.packed = torch.ops.quantized.linear_prepack(quantised, bias)
            finally:
                torch.backends.quantized.engine = before

    def forward(self, x: Tensor) -> Tensor:
        """x weight^T + bias: (..., in_features) to (..., out_features) of x's dtype."""
        rows = x.reshape(-1, self.in_features).float()
        missing = -len(rows) % (32 if len(rows) <= 512 else 128)
        if missing:  # oneDNN compiles a product for each number of rows
            rows = F.pad(rows, (0, 0, 0, missing))
        out: Tensor = torch.ops.quantized.linear_dynamic(rows, self.packed, reduce_range=not _has_vnni())
        out = out[: out.shape[0] - missing] if missing else out
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, int8"

    def _save_to_state_dict(self, *_: Any) -> None:
        raise RuntimeError("layers in int8 can't be saved: save the model before quantise_int8")


def _has_vnni() -> bool:
    """True if the processor adds up products of 8 bits without overflow; elsewhere activations have 7 bits."""
    return bool(getattr(torch.cpu, "_is_vnni_supported", lambda: False)())


def _linear_layers(model: nn.Module) -> Iterator[nn.Linear]:
    """Plain linear layers of the layers of every encoder in a model."""
    for layer in layers_of(model):
        for part in layer.modules():
            yield from (module for module in part.modules() if is_plain(module, nn.Linear))


def quantise_int8(model: M) -> M:
    """Give the linear layers of an encoder's layers int8 weights, in place. For inference on a CPU.

    Embeddings, heads and what is not exactly `torch.nn.Linear` without hooks (adapters, say) stay as they are.

    Args:
        model: ErnieM, or a model that is padding-free, in float32 on the CPU.

    Returns:
        The model.

    Raises:
        ValueError: the model is not in float32 on the CPU, holds no such layer or weights that are not finite, or this
            build of torch has no oneDNN.
    """
    if ENGINE not in torch.backends.quantized.supported_engines:
        raise ValueError("dtype 'int8' needs a torch that is built with oneDNN for this processor")
    layers = list(_linear_layers(model))
    if not layers:
        raise ValueError(f"model holds no linear layers of a padding-free encoder, got {type(model).__name__}")
    for linear in layers:
        if linear.weight.dtype != torch.float32 or linear.weight.device.type != "cpu":
            raise ValueError(
                f"dtype 'int8' starts from float32 on the CPU, got {linear.weight.dtype} on {linear.weight.device}"
            )
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():  # 8 bits hold no NaN: it would become a number in the next layer
            raise ValueError(f"dtype 'int8' needs finite weights, got NaN or infinity in {name}")
    quantised = {id(linear): Int8Linear(linear) for linear in layers}
    for module in list(model.modules()):
        for name, child in module.named_children():
            if id(child) in quantised:
                setattr(module, name, quantised[id(child)])
    return model

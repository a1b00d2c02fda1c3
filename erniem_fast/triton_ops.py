"""The Triton backend of `ops`: what the kernels take, and the door to each. Shapes and meanings stand in `ops`."""

import functools
from typing import Any

import torch
from torch import Tensor

from .inference.batch_invariance import is_batch_invariant
from .kernels import activation, attention, embedding, layer_norm
from .kernels import linear as linear_kernel
from .kernels import mlp as mlp_kernel
from .kernels.common import DTYPES, INTERPRETED

MAX_HEAD_DIM = 128
"""Widest head of attention."""
MAX_ROW = 4096
"""Most columns of a row that a layer-norm takes."""


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """What the kernels lack with operands of this device and dtype; None: nothing."""
    if device.type != "cuda" and not (INTERPRETED and device.type == "cpu"):
        return f"a CUDA device (or a CPU under TRITON_INTERPRET=1), got {device}"
    if dtype not in DTYPES:
        return f"float32, bfloat16 or float16, got {dtype}"
    return None


@functools.cache
def is_at_home(device: torch.device) -> bool:
    """Whether `auto` picks the kernels: on NVIDIA GPUs that have bfloat16 tensor cores."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def attention_tiles(cu_seqlens: Tensor, max_seqlen: int, total_tokens: int) -> Tensor:
    return attention.attention_tiles(cu_seqlens, max_seqlen, total_tokens, is_batch_invariant())  # type: ignore[no-any-return]


def varlen_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    prefix_lens: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    site: int,
    tiles: Tensor | None,
) -> Tensor:
    if tiles is None:
        tiles = attention_tiles(cu_seqlens, max_seqlen, qkv.shape[0])
    return attention.varlen_attention(  # type: ignore[no-any-return]
        qkv, cu_seqlens, tiles, max_seqlen, prefix_lens, dropout_p, seed, site, is_batch_invariant()
    )[0]


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    linear_bias: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    site: int,
) -> Tensor:
    save = _needs_grad(x, residual, weight, bias, linear_bias)
    return layer_norm.dropout_add_layer_norm(  # type: ignore[no-any-return]
        x, residual, weight, bias, linear_bias, eps, dropout_p, seed, site, save
    )[0]


def bias_gelu_dropout(x: Tensor, bias: Tensor | None, dropout_p: float, seed: Tensor | None, site: int) -> Tensor:
    return activation.bias_gelu_dropout(x, bias, dropout_p, seed, site)  # type: ignore[no-any-return]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias, batch-invariant; x: (..., in_features).

    Raises:
        ValueError: operands that the kernel doesn't take, or a gradient is asked for.
    """
    x, weight, bias = _autocast(x, weight, bias)
    _check_linear(x, weight, bias)
    y = linear_kernel.linear(x.reshape(x.shape[:-1].numel(), x.shape[-1]), weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])  # type: ignore[no-any-return]


def mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, dropout_p: float, seed: Tensor | None, site: int
) -> Tensor:
    x, weight1, bias1, weight2 = _autocast(x, weight1, bias1, weight2)
    batch_invariant = is_batch_invariant()
    if batch_invariant:
        _check_linear(x, weight1, bias1)
        _check_linear(x, weight2, None)
    save = _needs_grad(x, weight1, bias1, weight2)
    return mlp_kernel.mlp(x, weight1, bias1, weight2, dropout_p, seed, site, save, batch_invariant)[0]  # type: ignore[no-any-return]


def embedding_layer_norm(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    position_ids: Tensor,
    word_weight: Tensor,
    position_weight: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    padding_idx: int | None,
    position_padding_idx: int | None,
    dropout_p: float,
    seed: Tensor | None,
    site: int,
) -> Tensor:
    words = word_weight if inputs_embeds is None else inputs_embeds
    padding, position_padding = (-1 if index is None else index for index in (padding_idx, position_padding_idx))
    save = _needs_grad(words, position_weight, weight, bias)
    return embedding.embedding_layer_norm(  # type: ignore[no-any-return]
        input_ids, words, position_ids, position_weight, weight, bias, eps, padding, position_padding, dropout_p,
        seed, site, save,
    )[0]  # fmt: skip


def _autocast(*operands: Any) -> Any:
    """The operands of a matrix product as autocast, if it is on, makes them."""
    kind = operands[0].device.type
    if not torch.is_autocast_enabled(kind):
        return operands
    dtype = torch.get_autocast_dtype(kind)
    return tuple(None if operand is None else operand.to(dtype) for operand in operands)


def _check_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    refused = refusal(x.device, x.dtype)
    if refused is not None:
        raise ValueError(f"batch_invariant() needs {refused}")
    if not linear_kernel.is_aligned(x, weight):
        step = linear_kernel.ALIGNMENT // x.dtype.itemsize
        raise ValueError(
            f"batch_invariant() needs linear layers of the operand's dtype whose in_features are a multiple of {step} "
            f"in {x.dtype}, got {weight.dtype} {tuple(weight.shape)}"
        )
    if bias is not None and bias.dtype != x.dtype:
        raise ValueError(f"batch_invariant() needs a bias of {x.dtype}, the operands' dtype, got {bias.dtype}")
    if _needs_grad(x, weight, bias):
        raise ValueError("batch_invariant() is for inference: use torch.inference_mode() or torch.no_grad()")


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)

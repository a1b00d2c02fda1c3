"""The Triton backend of `ops`: what the kernels take, and the door to each. Shapes and meanings stand in `ops`."""

import torch
from torch import Tensor

from .kernels import activation, attention, embedding, layer_norm
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


def is_at_home(device: torch.device) -> bool:
    """Whether `auto` picks the kernels: on NVIDIA GPUs that have bfloat16 tensor cores."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def attention_tiles(cu_seqlens: Tensor, max_seqlen: int, total_tokens: int) -> Tensor:
    return attention.attention_tiles(cu_seqlens, max_seqlen, total_tokens)  # type: ignore[no-any-return]


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
    return attention.varlen_attention(qkv, cu_seqlens, tiles, max_seqlen, prefix_lens, dropout_p, seed, site)[0]  # type: ignore[no-any-return]


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


def mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, dropout_p: float, seed: Tensor | None, site: int
) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight1, bias1, weight2 = x.to(dtype), weight1.to(dtype), bias1.to(dtype), weight2.to(dtype)
    save = _needs_grad(x, weight1, bias1, weight2)
    return activation.mlp(x, weight1, bias1, weight2, dropout_p, seed, site, save)[0]  # type: ignore[no-any-return]


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


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)

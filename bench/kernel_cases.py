"""The kernels and their peers. Every provider is timed on operands that it was given in the form that it likes."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from erniem_fast import ops

from . import work
from .compiling import compiled
from .gpu_shapes import ATTENTION_SHAPES, ROW_SHAPES, TINY_SHAPE
from .kernel_inputs import (
    EPS,
    SITE,
    AddNormInputs,
    AttentionInputs,
    Compute,
    EmbeddingInputs,
    GeluInputs,
    KernelInputs,
    LinearGeluInputs,
)
from .peers import varlen_attention
from .registry import Operation, Prepared
from .shapes import Setting, Shape

OURS, EAGER, COMPILED = "triton", "torch", "torch.compile"
ORACLE = "formula"
"""No provider: `KernelInputs.expected`."""

ATTENTION = Operation("attention", AttentionInputs.make, ATTENTION_SHAPES, TINY_SHAPE, ORACLE, OURS, rounds=0)
ADD_NORM = Operation("add+layer-norm", AddNormInputs.make, ROW_SHAPES, TINY_SHAPE, ORACLE, OURS, rounds=0)
GELU = Operation("bias+gelu", GeluInputs.make, ROW_SHAPES, TINY_SHAPE, ORACLE, OURS, rounds=0)
EMBEDDING = Operation("embedding+layer-norm", EmbeddingInputs.make, ROW_SHAPES, TINY_SHAPE, ORACLE, OURS, rounds=0)
LINEAR_GELU = Operation("linear+gelu", LinearGeluInputs.make, ROW_SHAPES, TINY_SHAPE, ORACLE, OURS, rounds=0)
OPERATIONS = (ATTENTION, ADD_NORM, GELU, EMBEDDING, LINEAR_GELU)


def needs_triton(shape: Shape, setting: Setting) -> str | None:
    try:
        ops.resolve_backend("triton", torch.device(setting.device), setting.dtype)
    except ValueError as error:
        return str(error)
    return None


def needs_liger(shape: Shape, setting: Setting) -> str | None:
    return None if find_spec("liger_kernel") else "liger_kernel is not installed"


def needs_no_dropout(shape: Shape, setting: Setting) -> str | None:
    return "has no dropout" if setting.dropout_p else None


def needs_one_length(shape: Shape, setting: Setting) -> str | None:
    return None if len(set(shape.batches[0])) == 1 else "takes no mask, and the lengths differ"


@ATTENTION.provider(OURS, needs=needs_triton)
def _(inputs: AttentionInputs) -> Prepared:
    packed = inputs.batch.packed
    tiles = ops.attention_tiles(packed.cu_seqlens, packed.max_seqlen, packed.total_tokens, backend="triton")

    def make(p: float) -> Compute:
        return lambda qkv: ops.varlen_attention(
            qkv, packed.cu_seqlens, packed.max_seqlen, dropout_p=p, seed=inputs.seed, site=SITE, tiles=tiles,
            backend="triton",
        )  # fmt: skip

    return inputs.prepare(make, same_mask=True)


def _packed_parts(inputs: AttentionInputs, make: Callable[[float], Compute]) -> Prepared:
    """For peers that take query, key and value (total_tokens, num_heads, head_dim) apart."""

    def to_shared(results: list[Tensor]) -> list[Tensor]:
        return [results[0], torch.stack(results[1:], 1)] if len(results) > 1 else results

    parts = [part.contiguous() for part in inputs.leaves[0].unbind(1)]
    return inputs.prepare(make, parts, to_shared=to_shared)


def _padded_parts(inputs: AttentionInputs, make: Callable[[float], Compute]) -> Prepared:
    """For peers that take them padded, (batch, num_heads, seq_len, head_dim)."""
    packed = inputs.batch.packed

    def to_shared(results: list[Tensor]) -> list[Tensor]:
        rows = [packed.from_grid(padded.transpose(1, 2)) for padded in results]
        return [rows[0], torch.stack(rows[1:], 1)] if len(rows) > 1 else rows

    return inputs.prepare(make, *inputs.padded(), to_shared)


def attention_chain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout_p: float) -> Tensor:
    """Attention on padded operands as transformers 4.40.2 writes it."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return F.dropout(F.softmax(scores, -1), dropout_p) @ value


def _mask(inputs: AttentionInputs) -> Tensor:
    return inputs.batch.attention_mask.bool()[:, None, None, :]


@ATTENTION.provider(EAGER, note="padded, unfused")
def _(inputs: AttentionInputs) -> Prepared:
    mask = _mask(inputs)
    return _padded_parts(inputs, lambda p: lambda q, k, v: attention_chain(q, k, v, mask, p))


@ATTENTION.provider(COMPILED, note="padded, the chain of `torch` compiled")
def _(inputs: AttentionInputs) -> Prepared:
    mask, chain = _mask(inputs), compiled(attention_chain, inputs.setting.device, (*[(0, 2)] * 3, (0, 3)))
    return _padded_parts(inputs, lambda p: lambda q, k, v: chain(q, k, v, mask, p))


@ATTENTION.provider("varlen_attn", devices=("cuda",), note="has no dropout", needs=needs_no_dropout)
def _(inputs: AttentionInputs) -> Prepared:
    offsets, longest = inputs.batch.packed.cu_seqlens, inputs.batch.packed.max_seqlen
    return _packed_parts(inputs, lambda _: lambda q, k, v: varlen_attention(q, k, v, offsets, longest))


@ATTENTION.provider("nested sdpa", note="jagged nested tensors")
def _(inputs: AttentionInputs) -> Prepared:
    offsets, longest = inputs.batch.packed.cu_seqlens.long(), inputs.batch.packed.max_seqlen
    shortest = min(inputs.shape.batches[0])

    def make(p: float) -> Compute:
        def nest(part: Tensor) -> Tensor:
            nested = torch.nested.nested_tensor_from_jagged(part, offsets, min_seqlen=shortest, max_seqlen=longest)
            return nested.transpose(1, 2)

        def compute(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            out = F.scaled_dot_product_attention(nest(query), nest(key), nest(value), dropout_p=p)
            return out.transpose(1, 2).values()

        return compute

    return _packed_parts(inputs, make)


def _sdpa(inputs: AttentionInputs, backend: SDPBackend | None = None) -> Prepared:
    mask = None if needs_one_length(inputs.shape, inputs.setting) is None else _mask(inputs)

    def make(p: float) -> Compute:
        def compute(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            with nullcontext() if backend is None else sdpa_kernel(backend):
                return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=p)

        return compute

    return _padded_parts(inputs, make)


@ATTENTION.provider("padded sdpa", note="the backend that PyTorch picks")
def _(inputs: AttentionInputs) -> Prepared:
    return _sdpa(inputs)


@ATTENTION.provider("padded sdpa, flash", devices=("cuda",), needs=needs_one_length)
def _(inputs: AttentionInputs) -> Prepared:
    return _sdpa(inputs, SDPBackend.FLASH_ATTENTION)


@ATTENTION.provider("padded sdpa, cudnn", devices=("cuda",))
def _(inputs: AttentionInputs) -> Prepared:
    return _sdpa(inputs, SDPBackend.CUDNN_ATTENTION)


def add_norm_chain(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, linear_bias: Tensor, dropout_p: float
) -> Tensor:
    return F.layer_norm(residual + F.dropout(x + linear_bias, dropout_p), weight.shape, weight, bias, EPS)


def gelu_chain(x: Tensor, bias: Tensor, dropout_p: float) -> Tensor:
    return F.dropout(F.gelu(x + bias), dropout_p)


def linear_gelu_chain(x: Tensor, weight: Tensor, bias: Tensor, dropout_p: float) -> Tensor:
    return F.dropout(F.gelu(F.linear(x, weight, bias)), dropout_p)


def embedding_chain(
    words: Tensor, positions: Tensor, weight: Tensor, bias: Tensor, ids: Tensor, places: Tensor, dropout_p: float
) -> Tensor:
    rows = F.embedding(ids, words) + F.embedding(places, positions)
    return F.dropout(F.layer_norm(rows, weight.shape, weight, bias, EPS), dropout_p)


def _peers(
    operation: Operation,
    chain: Callable[..., Tensor],
    varying: tuple[tuple[int, ...], ...],
    extra: Callable[[Any], tuple[Any, ...]] = lambda inputs: (),
) -> None:
    """Registers `chain(*leaves, *extra(inputs), dropout_p)`, eager and compiled; `varying` as in `compiled`."""

    @operation.provider(EAGER, note="packed, unfused")
    def _(inputs: KernelInputs) -> Prepared:
        return inputs.prepare(lambda p: lambda *leaves: chain(*leaves, *extra(inputs), p))

    @operation.provider(COMPILED, note="packed, the chain of `torch` compiled")
    def _(inputs: KernelInputs) -> Prepared:
        function = compiled(chain, inputs.setting.device, varying)
        return inputs.prepare(lambda p: lambda *leaves: function(*leaves, *extra(inputs), p))


_peers(ADD_NORM, add_norm_chain, ((0,), (0,), (), (), ()))
_peers(GELU, gelu_chain, ((0,), ()))
_peers(LINEAR_GELU, linear_gelu_chain, ((0,), (), ()))
_peers(
    EMBEDDING,
    embedding_chain,
    ((), (), (), (), (0,), (0,)),
    lambda inputs: (inputs.batch.packed.input_ids, inputs.batch.packed.position_ids),
)


@ADD_NORM.provider("liger", devices=("cuda",), note="its layer-norm in the unfused chain", needs=needs_liger)
def _(inputs: AddNormInputs) -> Prepared:
    from liger_kernel.transformers.functional import liger_layer_norm

    def make(p: float) -> Compute:
        def compute(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, linear_bias: Tensor) -> Tensor:
            out: Tensor = liger_layer_norm(residual + F.dropout(x + linear_bias, p), weight, bias, EPS)
            return out

        return compute

    return inputs.prepare(make)


@ADD_NORM.provider(OURS, needs=needs_triton)
def _(inputs: AddNormInputs) -> Prepared:
    def make(p: float) -> Compute:
        def compute(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, linear_bias: Tensor) -> Tensor:
            return ops.dropout_add_layer_norm(
                x, residual, weight, bias, EPS, linear_bias=linear_bias, dropout_p=p, seed=inputs.seed, site=SITE,
                backend="triton",
            )  # fmt: skip

        return compute

    return inputs.prepare(make, same_mask=True)


@GELU.provider(OURS, needs=needs_triton)
def _(inputs: GeluInputs) -> Prepared:
    def make(p: float) -> Compute:
        return lambda x, bias: ops.bias_gelu_dropout(
            x, bias, dropout_p=p, seed=inputs.seed, site=SITE, backend="triton"
        )

    return inputs.prepare(make, same_mask=True)


def needs_no_gradient(shape: Shape, setting: Setting) -> str | None:
    return needs_triton(shape, setting) or (None if setting.passes == work.FORWARD else "has no backward of its own")


@LINEAR_GELU.provider(OURS, note="cuBLAS and our pass for GELU", needs=needs_triton)
def _(inputs: LinearGeluInputs) -> Prepared:
    def make(p: float) -> Compute:
        return lambda x, weight, bias: ops.bias_gelu_dropout(
            F.linear(x, weight), bias, dropout_p=p, seed=inputs.seed, site=SITE, backend="triton"
        )

    return inputs.prepare(make, same_mask=True)


@LINEAR_GELU.provider("triton, epilogue", note="one kernel: GELU in the product's epilogue", needs=needs_no_gradient)
def _(inputs: LinearGeluInputs) -> Prepared:
    from erniem_fast.kernels.linear import launch_linear

    def make(p: float) -> Compute:
        return lambda x, weight, bias: launch_linear(x, weight, bias, True, p, inputs.seed, SITE)[0]

    return inputs.prepare(make, same_mask=True)


@EMBEDDING.provider(OURS, needs=needs_triton)
def _(inputs: EmbeddingInputs) -> Prepared:
    packed = inputs.batch.packed

    def make(p: float) -> Compute:
        def compute(words: Tensor, positions: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return ops.embedding_layer_norm(
                packed.input_ids, packed.position_ids, words, positions, weight, bias, EPS, dropout_p=p,
                seed=inputs.seed, site=SITE, backend="triton",
            )  # fmt: skip

        return compute

    return inputs.prepare(make, same_mask=True)

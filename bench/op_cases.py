"""The packed operations, against plain PyTorch on the same rows padded.

Padded providers get their operands padded beforehand: neither padding nor unpadding is in their time.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from erniem_fast import PackedBatch, ops

from .registry import Operation, Prepared, prepare
from .shapes import EVEN, ONE_BATCH, TINY_BATCH, Batch, Setting, Shape

EPS = 1e-5
SHAPES = (ONE_BATCH, EVEN)
ROUNDS = 30


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """qkv (total_tokens, 3, num_heads, head_dim); padded: the three as (batch, num_heads, seq_len, head_dim)."""

    packed: PackedBatch
    qkv: Tensor
    padded: tuple[Tensor, Tensor, Tensor]
    mask: Tensor

    @classmethod
    def make(cls, shape: Shape, setting: Setting) -> "AttentionInputs":
        sizes = shape.sizes
        batch = _batch(shape, setting)
        head_dim = sizes.hidden_size // sizes.num_heads
        qkv = setting.randn(batch.packed.total_tokens, 3, sizes.num_heads, head_dim)
        query, key, value = batch.packed.to_grid(qkv).permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        return cls(batch.packed, qkv, (query, key, value), batch.attention_mask.bool()[:, None, None, :])

    def rows(self, padded: Tensor) -> Tensor:
        """(batch, num_heads, seq_len, head_dim) to (total_tokens, num_heads, head_dim)."""
        return self.packed.from_grid(padded.transpose(1, 2))


@dataclass(frozen=True, eq=False)
class RowInputs:
    """Rows as a linear layer leaves them, packed and padded, and the vectors that are applied to them."""

    batch: Batch
    x: Tensor
    residual: Tensor
    weight: Tensor
    bias: Tensor
    linear_bias: Tensor
    padded_x: Tensor
    padded_residual: Tensor

    @classmethod
    def hidden(cls, shape: Shape, setting: Setting) -> "RowInputs":
        """Rows of the hidden size."""
        return cls._make(shape, setting, shape.sizes.hidden_size)

    @classmethod
    def intermediate(cls, shape: Shape, setting: Setting) -> "RowInputs":
        """Rows of the intermediate size."""
        return cls._make(shape, setting, shape.sizes.intermediate_size)

    @classmethod
    def _make(cls, shape: Shape, setting: Setting, size: int) -> "RowInputs":
        batch = _batch(shape, setting)
        x, residual = (setting.randn(batch.packed.total_tokens, size) for _ in range(2))
        grids = batch.packed.to_grid(x), batch.packed.to_grid(residual)
        return cls(batch, x, residual, setting.randn(size), setting.randn(size), setting.randn(size), *grids)

    def rows(self, padded: Tensor) -> Tensor:
        """(batch, seq_len, size) to (total_tokens, size)."""
        return self.batch.packed.from_grid(padded)


@dataclass(frozen=True, eq=False)
class EmbeddingInputs:
    """A batch and the two tables."""

    batch: Batch
    words: Tensor
    positions: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def make(cls, shape: Shape, setting: Setting) -> "EmbeddingInputs":
        sizes = shape.sizes
        tables = setting.randn(sizes.vocab_size, sizes.hidden_size), setting.randn(514, sizes.hidden_size)
        vectors = setting.randn(sizes.hidden_size), setting.randn(sizes.hidden_size)
        return cls(_batch(shape, setting), *tables, *vectors)


def _batch(shape: Shape, setting: Setting) -> Batch:
    (lengths,) = shape.batches
    return Batch.random(lengths, shape.sizes.vocab_size, setting.device)


VARLEN_ATTENTION = Operation(
    "varlen_attention", AttentionInputs.make, SHAPES, TINY_BATCH, oracle="padded-eager", baseline="torch", rounds=ROUNDS
)
DROPOUT_ADD_LAYER_NORM = Operation(
    "dropout_add_layer_norm", RowInputs.hidden, SHAPES, TINY_BATCH, "padded-eager", "torch", ROUNDS
)
BIAS_GELU_DROPOUT = Operation(
    "bias_gelu_dropout", RowInputs.intermediate, SHAPES, TINY_BATCH, "padded-eager", "torch", ROUNDS
)
EMBEDDING_LAYER_NORM = Operation(
    "embedding_layer_norm", EmbeddingInputs.make, SHAPES, TINY_BATCH, "padded-eager", "torch", ROUNDS
)
OPERATIONS = (VARLEN_ATTENTION, DROPOUT_ADD_LAYER_NORM, BIAS_GELU_DROPOUT, EMBEDDING_LAYER_NORM)


@VARLEN_ATTENTION.provider("torch")
def _(inputs: AttentionInputs) -> Prepared:
    packed = inputs.packed
    return prepare(lambda: ops.varlen_attention(inputs.qkv, packed.cu_seqlens, packed.max_seqlen, backend="torch"))


@VARLEN_ATTENTION.provider("padded-eager")
def _(inputs: AttentionInputs) -> Prepared:
    query, key, value = inputs.padded

    def compute() -> Tensor:
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        scores = scores.masked_fill(~inputs.mask, torch.finfo(scores.dtype).min)
        return F.softmax(scores, -1) @ value

    return prepare(compute, inputs.rows)


@VARLEN_ATTENTION.provider("padded-sdpa")
def _(inputs: AttentionInputs) -> Prepared:
    mask = None if bool(inputs.mask.all()) else inputs.mask
    return prepare(lambda: F.scaled_dot_product_attention(*inputs.padded, attn_mask=mask), inputs.rows)


@DROPOUT_ADD_LAYER_NORM.provider("torch")
def _(inputs: RowInputs) -> Prepared:
    return prepare(
        lambda: ops.dropout_add_layer_norm(
            inputs.x, inputs.residual, inputs.weight, inputs.bias, EPS, linear_bias=inputs.linear_bias, backend="torch"
        )
    )


@DROPOUT_ADD_LAYER_NORM.provider("padded-eager")
def _(inputs: RowInputs) -> Prepared:
    x, residual = inputs.padded_x, inputs.padded_residual
    size = inputs.weight.shape
    return prepare(
        lambda: F.layer_norm(residual + (x + inputs.linear_bias), size, inputs.weight, inputs.bias, EPS), inputs.rows
    )


@BIAS_GELU_DROPOUT.provider("torch")
def _(inputs: RowInputs) -> Prepared:
    return prepare(lambda: ops.bias_gelu_dropout(inputs.x, inputs.linear_bias, backend="torch"))


@BIAS_GELU_DROPOUT.provider("padded-eager")
def _(inputs: RowInputs) -> Prepared:
    return prepare(lambda: F.gelu(inputs.padded_x + inputs.linear_bias), inputs.rows)


@EMBEDDING_LAYER_NORM.provider("torch")
def _(inputs: EmbeddingInputs) -> Prepared:
    packed, tables = inputs.batch.packed, (inputs.words, inputs.positions)
    vectors = (inputs.weight, inputs.bias)
    return prepare(
        lambda: ops.embedding_layer_norm(
            packed.input_ids, packed.position_ids, *tables, *vectors, EPS, padding_idx=1, backend="torch"
        )
    )


@EMBEDDING_LAYER_NORM.provider("padded-eager")
def _(inputs: EmbeddingInputs) -> Prepared:
    input_ids, size = inputs.batch.input_ids, inputs.weight.shape
    positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)

    def compute() -> Tensor:
        rows = F.embedding(input_ids, inputs.words) + F.embedding(positions, inputs.positions)
        return F.layer_norm(rows, size, inputs.weight, inputs.bias, EPS)

    return prepare(compute, inputs.batch.packed.from_grid)


@VARLEN_ATTENTION.provider("triton", devices=("cuda",))
def _(inputs: AttentionInputs) -> Prepared:
    packed = inputs.packed
    tiles = ops.attention_tiles(packed.cu_seqlens, packed.max_seqlen, packed.total_tokens)
    return prepare(lambda: ops.varlen_attention(inputs.qkv, packed.cu_seqlens, packed.max_seqlen, tiles=tiles))


@DROPOUT_ADD_LAYER_NORM.provider("triton", devices=("cuda",))
def _(inputs: RowInputs) -> Prepared:
    vectors = (inputs.weight, inputs.bias)
    return prepare(
        lambda: ops.dropout_add_layer_norm(
            inputs.x, inputs.residual, *vectors, EPS, linear_bias=inputs.linear_bias, backend="triton"
        )
    )


@BIAS_GELU_DROPOUT.provider("triton", devices=("cuda",))
def _(inputs: RowInputs) -> Prepared:
    return prepare(lambda: ops.bias_gelu_dropout(inputs.x, inputs.linear_bias, backend="triton"))


@EMBEDDING_LAYER_NORM.provider("triton", devices=("cuda",))
def _(inputs: EmbeddingInputs) -> Prepared:
    packed, tables = inputs.batch.packed, (inputs.words, inputs.positions)
    vectors = (inputs.weight, inputs.bias)
    return prepare(
        lambda: ops.embedding_layer_norm(
            packed.input_ids, packed.position_ids, *tables, *vectors, EPS, padding_idx=1, backend="triton"
        )
    )

"""The one door to the fused operations: checks arguments, picks a backend.

Everything is packed: the sequences of a batch stand end to end in `total_tokens` rows, and
`cu_seqlens` (num_sequences + 1,) int32 says where each begins and ends. Operands are float32, float64, bfloat16 or
float16; a result has their dtype, or under autocast what autocast makes of it.

Dropout is a function of (`seed`, `site`, place of the element): `seed` is a (1,) int64 tensor on the operands' device,
drawn once a forward (`draw_seed`), and `site` a Python int that tells the dropouts of one forward apart. The mapping,
the same for every backend, stands in `kernels/dropout.py`. With `dropout_p=0` neither is read.

`backend`: "triton" are the kernels in `kernels/`, for CUDA devices (and for a CPU under TRITON_INTERPRET=1, slowly, to
test them); "torch" runs anywhere; "auto" takes the kernels on NVIDIA GPUs of compute capability 8.0 and up, where they
take the operand's dtype and size, and torch elsewhere.
"""

from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from .. import torch_ops
from ..inference.batch_invariance import BatchInvariant, is_batch_invariant

BACKENDS = ("auto", "triton", "torch")


@torch.compiler.assume_constant_result
def resolve_backend(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The backend that takes operands of this device and dtype: "triton" or "torch".

    Raises:
        ValueError: the backend is unknown, or "triton" was asked for and can't be had.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if is_batch_invariant():
        if backend == "torch":
            raise ValueError("backend must be 'auto' or 'triton' in batch_invariant(), got 'torch'")
        backend = "triton"
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return "torch"
    if find_spec("triton") is None:
        refusal: str | None = "the package triton, which is not installed"
    else:
        # Imported where it is first asked for: a CPU needs no triton.
        from .. import triton_ops

        if backend == "auto" and not triton_ops.is_at_home(device):
            return "torch"
        refusal = triton_ops.refusal(device, dtype)
    if refusal is None:
        return "triton"
    if backend == "auto":
        return "torch"
    raise ValueError(f"backend 'triton' needs {refusal}")


def _backend(backend: str, first: Tensor, *others: Tensor | None, head_dim: int = 0, row: int = 0) -> ModuleType:
    """The module that computes, if it takes all operands; `row`: columns that are reduced at once."""
    for operand in (first, *others):
        if operand is not None and resolve_backend(backend, operand.device, operand.dtype) == "torch":
            return torch_ops
    from .. import triton_ops

    limits = (("head_dim", head_dim, triton_ops.MAX_HEAD_DIM), ("hidden_size", row, triton_ops.MAX_ROW))
    for name, size, most in limits:
        if size > most:
            if backend == "auto" and not is_batch_invariant():
                return torch_ops
            raise ValueError(f"backend 'triton' needs a {name} of at most {most}, got {size}")
    return triton_ops


def batch_invariant() -> BatchInvariant:
    """Context in which a sequence's result is bitwise the same alone, in any batch and in any order.

        with torch.inference_mode(), batch_invariant():
            outputs = model(**batch)

    Elsewhere sums over a row are split by how many rows there are, and results differ in the last bits. Here every
    linear layer goes through the kernel of `kernels/linear.py`, which adds up in one order whatever the batch, and the
    attention takes tiles of one size. It holds for the padding-free model and the operations of this module, in the
    thread that enters it, without gradients. What can't be had raises a ValueError: other matrix products (dense
    attention: output_attentions, head_mask, masks of 3 or 4 dimensions), the torch backend, a linear layer whose
    in_features are no multiple of 16 bytes.

    Raises:
        ValueError: triton is not installed.
    """
    if find_spec("triton") is None:
        raise ValueError("batch_invariant() needs the package triton, which is not installed")
    from .. import triton_ops

    return BatchInvariant(triton_ops.linear)


def fuses_bias(backend: str, rows: Tensor) -> bool:
    """Whether a bias is best left to the operation after a linear layer, rather than added by the layer itself."""
    return resolve_backend(backend, rows.device, rows.dtype) != "torch"


def draw_seed(device: torch.device) -> Tensor:
    """(1,) int64 from the device's default generator, so that `torch.manual_seed` governs dropout. No host sync."""
    return torch.randint(0, 2**62, (1,), dtype=torch.int64, device=device)


def attention_tiles(cu_seqlens: Tensor, max_seqlen: int, total_tokens: int, *, backend: str = "auto") -> Tensor | None:
    """What `varlen_attention` works out of `cu_seqlens`, so that the layers of a model share it. No host sync.

    Args:
        cu_seqlens, max_seqlen, backend: as there.
        total_tokens: rows of its `qkv`.

    Returns:
        A tensor for `tiles`; None if the backend needs none.
    """
    if resolve_backend(backend, cu_seqlens.device) == "torch":
        return None
    from .. import triton_ops

    return triton_ops.attention_tiles(cu_seqlens, max_seqlen, total_tokens)


def varlen_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    prefix_lens: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    tiles: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(Q K^T / sqrt(head_dim)) V of each sequence by itself, with dropout on the probabilities.

    Args:
        qkv: (total_tokens, 3, num_heads, head_dim), the packed product of the three projections.
        cu_seqlens: (num_sequences + 1,) int32, from 0 to total_tokens. Sequences may be empty.
        max_seqlen: tokens in the longest sequence, or more.
        prefix_lens: (num_sequences,) int32: rows of a sequence before its prefix length p see only columns before
            p, rows from p on see all. None, 0 and the sequence's length: full attention.
        dropout_p: in [0, 1).
        seed, site, backend: see the module.
        tiles: from `attention_tiles` of the same `cu_seqlens` and `max_seqlen`; None: worked out here.

    Returns:
        (total_tokens, num_heads, head_dim). Differentiable once in `qkv`; the gradient is deterministic.

    Raises:
        ValueError: shapes, dtypes or devices that don't fit, or an unknown backend.
    """
    if qkv.dim() != 4 or qkv.shape[1] != 3:
        raise ValueError(f"qkv must have shape (total_tokens, 3, num_heads, head_dim), got {tuple(qkv.shape)}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.dtype != torch.int32:
        raise ValueError(
            f"cu_seqlens must be int32 of shape (num_sequences + 1,), got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        )
    num_sequences = cu_seqlens.shape[0] - 1
    if not isinstance(max_seqlen, int | torch.SymInt):
        raise ValueError(f"max_seqlen must be an int, got {type(max_seqlen).__name__}")
    if prefix_lens is not None:
        if prefix_lens.shape != (num_sequences,) or prefix_lens.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"prefix_lens must be int32 of shape ({num_sequences},) (num_sequences), "
                f"got {prefix_lens.dtype} {tuple(prefix_lens.shape)}"
            )
        prefix_lens = prefix_lens.to(torch.int32)
    slots = (qkv.shape[0] // 16 + num_sequences + 1 + is_batch_invariant(), 2)
    if tiles is not None and (tiles.shape != slots or tiles.dtype != torch.int32):
        raise ValueError(
            f"tiles must be int32 of shape {slots}, as attention_tiles makes them of the same cu_seqlens and in "
            f"the same mode, got {tiles.dtype} {tuple(tiles.shape)}"
        )
    _check_devices(qkv=qkv, cu_seqlens=cu_seqlens, prefix_lens=prefix_lens, seed=seed, tiles=tiles)
    _check_dropout(dropout_p, seed)
    module = _backend(backend, qkv, head_dim=qkv.shape[3])
    return module.varlen_attention(qkv, cu_seqlens, max_seqlen, prefix_lens, dropout_p, seed, site, tiles)


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    linear_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    backend: str = "auto",
) -> Tensor:
    """layer_norm(residual + dropout(x + linear_bias)).

    Args:
        x: (total_tokens, hidden_size), the product of a linear layer.
        residual: like `x`.
        weight, bias: (hidden_size,) of the layer-norm.
        eps: epsilon of the layer-norm.
        linear_bias: (hidden_size,) of the linear layer before, where it has not been added yet.
        dropout_p: in [0, 1).
        seed, site, backend: see the module.

    Returns:
        (total_tokens, hidden_size).

    Raises:
        ValueError: shapes or devices that don't fit, or an unknown backend.
    """
    _check_rows("x", x)
    if residual.shape != x.shape:
        raise ValueError(f"residual must have shape {tuple(x.shape)} (that of x), got {tuple(residual.shape)}")
    _check_vectors(x.shape[1], weight=weight, bias=bias, linear_bias=linear_bias)
    _check_devices(x=x, residual=residual, weight=weight, bias=bias, linear_bias=linear_bias, seed=seed)
    _check_dropout(dropout_p, seed)
    module = _backend(backend, x, residual, weight, bias, linear_bias, row=x.shape[1])
    return module.dropout_add_layer_norm(x, residual, weight, bias, eps, linear_bias, dropout_p, seed, site)


def bias_gelu_dropout(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    backend: str = "auto",
) -> Tensor:
    """dropout(gelu(x + bias)) with the exact, erf GELU.

    Args:
        x: (total_tokens, intermediate_size), the product of a linear layer.
        bias: (intermediate_size,) of that layer, where it has not been added yet.
        dropout_p: in [0, 1).
        seed, site, backend: see the module.

    Returns:
        (total_tokens, intermediate_size).

    Raises:
        ValueError: shapes or devices that don't fit, or an unknown backend.
    """
    _check_rows("x", x)
    _check_vectors(x.shape[1], bias=bias)
    _check_devices(x=x, bias=bias, seed=seed)
    _check_dropout(dropout_p, seed)
    return _backend(backend, x, bias).bias_gelu_dropout(x, bias, dropout_p, seed, site)


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    *,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    backend: str = "auto",
) -> Tensor:
    """dropout(gelu(x weight1^T + bias1)) weight2^T: the feed-forward block, without the last bias.

    For backward the kernels keep the first product and nothing else of that width.

    Args:
        x: (total_tokens, hidden_size).
        weight1: (intermediate_size, hidden_size).
        bias1: (intermediate_size,).
        weight2: (hidden_size, intermediate_size).
        dropout_p: in [0, 1).
        seed, site, backend: see the module.

    Returns:
        (total_tokens, hidden_size).

    Raises:
        ValueError: shapes or devices that don't fit, or an unknown backend.
    """
    _check_rows("x", x)
    size = bias1.shape[0] if bias1.dim() == 1 else 0
    for name, weight, shape in (
        ("weight1", weight1, (size, x.shape[1])),
        ("weight2", weight2, (weight2.shape[0], size)),
    ):
        if weight.shape != shape:
            raise ValueError(
                f"{name} must fit x {tuple(x.shape)} and bias1 {tuple(bias1.shape)}, got {tuple(weight.shape)}"
            )
    _check_devices(x=x, weight1=weight1, bias1=bias1, weight2=weight2, seed=seed)
    _check_dropout(dropout_p, seed)
    return _backend(backend, x, weight1, bias1, weight2).mlp(x, weight1, bias1, weight2, dropout_p, seed, site)


def embedding_layer_norm(
    input_ids: Tensor | None,
    position_ids: Tensor,
    word_weight: Tensor,
    position_weight: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    inputs_embeds: Tensor | None = None,
    padding_idx: int | None = None,
    position_padding_idx: int | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    backend: str = "auto",
) -> Tensor:
    """dropout(layer_norm(word_weight[input_ids] + position_weight[position_ids])).

    Args:
        input_ids: (total_tokens,) integers, or None with `inputs_embeds`.
        position_ids: (total_tokens,) integers, rows of `position_weight`.
        word_weight: (vocab_size, hidden_size).
        position_weight: (max_position_embeddings, hidden_size).
        weight, bias: (hidden_size,) of the layer-norm.
        eps: epsilon of the layer-norm.
        inputs_embeds: (total_tokens, hidden_size), taken in place of the word embeddings.
        padding_idx, position_padding_idx: row of `word_weight`, of `position_weight`, that gets no gradient.
        dropout_p: in [0, 1).
        seed, site, backend: see the module.

    Returns:
        (total_tokens, hidden_size). The torch backend raises an IndexError for an index out of range on
        a CPU; elsewhere, and by the kernels, it is clamped.

    Raises:
        ValueError: shapes or devices that don't fit, both or neither source, or an unknown backend.
    """
    source = input_ids if inputs_embeds is None else inputs_embeds
    if source is None or (input_ids is not None and inputs_embeds is not None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    if position_ids.dim() != 1 or source.shape[0] != position_ids.shape[0] or source.dim() != 1 + (input_ids is None):
        raise ValueError(
            f"input_ids and position_ids must have shape (total_tokens,), inputs_embeds (total_tokens, hidden_size), "
            f"got {tuple(source.shape)} and position_ids {tuple(position_ids.shape)}"
        )
    hidden_size = position_weight.shape[1]
    for name, table in (("word_weight", word_weight), ("inputs_embeds", inputs_embeds)):
        if table is not None and (table.dim() != 2 or table.shape[1] != hidden_size):
            raise ValueError(
                f"{name} must have {hidden_size} columns (those of position_weight), got {tuple(table.shape)}"
            )
    _check_vectors(hidden_size, weight=weight, bias=bias)
    _check_devices(
        position_ids=position_ids, source=source, word_weight=word_weight, position_weight=position_weight,
        weight=weight, bias=bias, seed=seed,
    )  # fmt: skip
    _check_dropout(dropout_p, seed)
    words = word_weight if inputs_embeds is None else inputs_embeds
    module = _backend(backend, words, position_weight, weight, bias, row=hidden_size)
    return module.embedding_layer_norm(
        input_ids, inputs_embeds, position_ids, word_weight, position_weight, weight, bias, eps, padding_idx,
        position_padding_idx, dropout_p, seed, site,
    )  # fmt: skip


def _check_rows(name: str, x: Tensor) -> None:
    if x.dim() != 2:
        raise ValueError(f"{name} must have shape (total_tokens, size), got {tuple(x.shape)}")


def _check_vectors(size: int, **vectors: Tensor | None) -> None:
    for name, vector in vectors.items():
        if vector is not None and vector.shape != (size,):
            raise ValueError(f"{name} must have shape ({size},), got {tuple(vector.shape)}")


def _check_devices(**tensors: Tensor | None) -> None:
    first, *others = [(name, tensor.device) for name, tensor in tensors.items() if tensor is not None]
    for name, device in others:
        if device != first[1]:
            raise ValueError(f"{name} must be on {first[1]}, where {first[0]} is, got {device}")


def _check_dropout(dropout_p: float, seed: Tensor | None) -> None:
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must lie in [0, 1), got {dropout_p}")
    if dropout_p and (seed is None or seed.shape != (1,) or seed.dtype != torch.int64):
        got = "None" if seed is None else f"{seed.dtype} {tuple(seed.shape)}"
        raise ValueError(f"seed must be a (1,) int64 tensor where dropout_p is not 0, got {got}")

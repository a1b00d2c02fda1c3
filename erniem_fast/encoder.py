"""A post-norm encoder layer on packed rows, whatever its attributes are called.

A layer hands over its parts; `run_layer` computes them. Models subclass nothing of this file.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from . import cpu_layer, fusion, ops
from .fusion import PackedContext, Pending
from .layer_parts import AttentionParts, LayerParts
from .ops.attention_torch import visible
from .outputs import Encoded, OutputOptions
from .packing import PackedBatch
from .validation import warn_once

SITES_PER_LAYER = 4
"""Dropouts of a layer, in the order attention, out, activation, linear2; site 0 is the embedding's."""


@dataclass
class PackedModelOutput(BaseModelOutputWithPoolingAndCrossAttentions):
    """An encoder's output on packed rows.

    Attributes:
        last_hidden_state: (total_tokens, hidden_size).
        pooler_output: (num_sequences, hidden_size).
        hidden_states: in the shape of the caller's batch.
        attentions: (num_sequences, num_heads, seq_len, seq_len) a layer.
        batch: the packing.
    """

    batch: PackedBatch | None = None


Layer = Callable[[Tensor, PackedContext], tuple[Tensor, Tensor | None]]
"""Maps (total_tokens, hidden_size) and the context to the rows to keep and, where they were computed, the probabilities
(num_sequences, num_heads, seq_len, seq_len)."""


def make_context(
    batch: PackedBatch,
    mask: Tensor | None,
    dense: str | None,
    *,
    num_heads: int,
    hidden_size: int,
    dtype: torch.dtype,
    training: bool,
    backend: str,
) -> PackedContext:
    """Decide how a batch is computed: seed of its dropouts, attention fused or dense, backend.

    Args:
        batch: the packing.
        mask: of the dense attention, or None.
        dense: reason why attention must be dense, for the log; None: it is fused.
        num_heads, hidden_size, dtype: of the layers.
        training: draw a seed.
        backend: "auto", "triton" or "torch".
    """
    device = batch.position_ids.device
    seed = ops.draw_seed(device) if training else None
    resolved = ops.resolve_backend(backend, device, dtype, hidden_size=hidden_size)
    if batch.holds_padding:
        return PackedContext(batch, seed, mask, None, "torch")
    if dense is not None:
        warn_once(dense)
        return PackedContext(batch, seed, mask, None, resolved)
    plan = ops.attention_plan(
        batch.cu_seqlens, batch.max_seqlen, batch.total_tokens, num_heads=num_heads,
        head_dim=hidden_size // num_heads, dtype=dtype, backend=backend,
    )  # fmt: skip
    return PackedContext(batch, seed, None, plan, resolved)


def run_layers(
    layers: Sequence[Layer],
    x: Tensor,
    context: PackedContext,
    options: OutputOptions,
    rows_to_keep: Tensor | None = None,
) -> Encoded:
    """Run the layers on (total_tokens, hidden_size), the last of them for the rows to keep.

    `hidden_states` have the shape of the caller's batch, and need all rows.
    """
    states: list[Tensor] = []
    attentions: list[Tensor | None] = []
    # Where layers are spread over devices, a layer's rows are not where the batch is.
    batch, device = context.batch, context.batch.position_ids.device

    def keep(x: Tensor) -> Tensor:
        if not options.hidden_states:
            return x
        states.append(batch.output(x.to(device)))
        # The rows are taken back out of it, so that its gradient can be asked for.
        return batch.rows(states[-1]) if torch.is_grad_enabled() else x

    last = len(layers) - 1
    for index, layer in enumerate(layers):
        if index == last and rows_to_keep is not None:
            context = replace(context, rows_to_keep=rows_to_keep)
        x, probabilities = layer(keep(x), context)
        if options.attentions:
            attentions.append(probabilities)
    x = keep(x)
    return Encoded.of(x, states, attentions, options)


def run_layer(
    parts: LayerParts, x: Tensor, context: PackedContext, head_mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Compute a layer.

    Args:
        parts: of the layer.
        x: (total_tokens, hidden_size).
        context: of the batch. All tokens are attended to; behind the attention only its rows to keep are computed, and
            a dropout there draws its mask by their places among each other.
        head_mask: (num_heads,) factors of the probabilities, or None.

    Returns:
        (total_tokens, hidden_size) or (num_kept, hidden_size), and the probabilities where they were computed.
    """
    if head_mask is None and (rows := cpu_layer.run(parts, x, context)) is not None:
        return rows, None
    site = 1 + SITES_PER_LAYER * parts.layer
    if isinstance(parts.attention, AttentionParts):
        assert parts.out is not None
        heads, probabilities = attend(parts.attention, x, context, head_mask)
        attention = fusion.linear(parts.out, context.kept(heads), context)
    else:
        output, probabilities = parts.attention(x, context, head_mask)
        attention = Pending(output)
    x = fusion.dropout_add_norm(attention, context.kept(x), parts.dropout1, parts.norm1, context, site + 1)
    inner = fusion.feed_forward(parts.linear1, parts.activation, parts.dropout, parts.linear2, x, context, site + 2)
    return fusion.dropout_add_norm(inner, x, parts.dropout2, parts.norm2, context, site + 3), probabilities


def attend(
    parts: AttentionParts, x: Tensor, context: PackedContext, head_mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Compute self-attention up to the joined heads.

    Returns:
        (total_tokens, num_heads * head_dim), and the probabilities where they were computed.
    """
    qkv = fusion.project_qkv(parts.query, parts.key, parts.value, x)
    qkv = qkv.unflatten(2, (parts.num_heads, qkv.shape[2] // parts.num_heads))
    fused, dropout = fusion.take_over(parts.dropout, context, 1 + SITES_PER_LAYER * parts.layer)
    if context.plan is None or not fused:
        if not fused:
            warn_once("Attention is computed densely: its dropout was replaced, hooked or left on.")
        return _attend_densely(parts, qkv, context, head_mask)
    batch = context.batch
    heads = ops.varlen_attention(
        qkv,
        batch.cu_seqlens,
        batch.max_seqlen,
        prefix_lens=batch.prefix_lens,
        causal=parts.causal,
        dropout=dropout,
        plan=context.plan,
    )
    return heads.flatten(1), None


def _attend_densely(
    parts: AttentionParts, qkv: Tensor, context: PackedContext, head_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, mask = context.batch, context.mask
    query, key, value = batch.to_grid(qkv).permute(2, 0, 3, 1, 4).unbind(0)
    real = batch.to_grid(torch.ones_like(batch.position_ids, dtype=torch.bool), False)
    if batch.prefix_lens is not None or parts.causal:
        seen = visible(real.shape[1], batch.prefix_lens, parts.causal, real.device)
        mask = seen if mask is None else mask & seen
    scores = query @ key.transpose(-1, -2)
    if parts.relative_scores is not None:
        scores = scores + parts.relative_scores(query, key)
    scores = scores / math.sqrt(query.shape[-1])
    lowest = torch.finfo(scores.dtype).min
    if mask is not None:  # a query that sees nothing attends uniformly to its sequence
        scores = scores.masked_fill(~_of_kept_heads(mask, 1, parts), lowest / 2)
    scores = scores.masked_fill(~real[:, None, None, :], lowest)
    probabilities = fusion.call_dropout(parts.dropout, scores.softmax(-1), context)
    if head_mask is not None:
        probabilities = probabilities * _of_kept_heads(head_mask, 0, parts).view(-1, 1, 1).to(probabilities.dtype)
    # Those returned are those that multiply the values, so that their gradient can be asked for.
    probabilities = probabilities * real[:, None, :, None]
    heads = (probabilities @ value).transpose(1, 2).flatten(2)
    return batch.from_grid(heads), probabilities


def _of_kept_heads(values: Tensor, dim: int, parts: AttentionParts) -> Tensor:
    """Select the heads that were not pruned, where `values` has a line for every head."""
    if parts.kept_heads is None or values.shape[dim] <= len(parts.kept_heads):
        return values
    kept: Any = [slice(None)] * dim + [parts.kept_heads]
    return values[tuple(kept)]

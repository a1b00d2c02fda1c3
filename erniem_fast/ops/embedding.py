"""Embedding sum, layer-norm and dropout in one operation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import check_devices, check_vectors, needs_grad, runs_kernels
from .dropout import Dropout, check_dropout, dropout_rows


def embedding_layer_norm(
    input_ids: Tensor | None,
    position_ids: Tensor,
    word_weight: Tensor | None,
    position_weight: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    inputs_embeds: Tensor | None = None,
    padding_idx: int | None = None,
    position_padding_idx: int | None = None,
    dropout: Dropout | None = None,
    backend: str = "auto",
) -> Tensor:
    """dropout(layer_norm(word_weight[input_ids] + position_weight[position_ids])).

    Args:
        input_ids: (total_tokens,) integers, or None with `inputs_embeds`.
        position_ids: (total_tokens,) integers, rows of `position_weight`.
        word_weight: (vocab_size, hidden_size); None with `inputs_embeds`, where it is not read.
        position_weight: (max_position_embeddings, hidden_size).
        weight, bias: (hidden_size,) of the layer-norm.
        eps: epsilon of the layer-norm.
        inputs_embeds: (total_tokens, hidden_size), taken in place of the word embeddings.
        padding_idx, position_padding_idx: row of `word_weight`, of `position_weight`, that gets no gradient.
        dropout: None for none.
        backend: "auto", "triton" or "torch".

    Returns:
        (total_tokens, hidden_size). The torch backend raises an IndexError for an index out of range on a CPU;
        elsewhere, and by the kernels, it is clamped.

    Raises:
        ValueError: shapes or devices that do not fit, both or neither source, or an unknown backend.
    """
    source = input_ids if inputs_embeds is None else inputs_embeds
    if source is None or (input_ids is not None and inputs_embeds is not None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    if input_ids is not None and word_weight is None:
        raise ValueError("word_weight must be a table where input_ids are given, got None")
    if position_ids.dim() != 1 or source.shape[:1] != position_ids.shape or source.dim() != 1 + (input_ids is None):
        raise ValueError(
            f"input_ids and position_ids must have shape (total_tokens,), inputs_embeds (total_tokens, hidden_size), "
            f"got {tuple(source.shape)} and position_ids {tuple(position_ids.shape)}"
        )
    if position_weight.dim() != 2:
        raise ValueError(
            "position_weight must have shape (max_position_embeddings, hidden_size), "
            f"got {tuple(position_weight.shape)}"
        )
    hidden_size = position_weight.shape[1]
    for name, table in (("word_weight", word_weight), ("inputs_embeds", inputs_embeds)):
        if table is not None and (table.dim() != 2 or table.shape[1] != hidden_size):
            raise ValueError(
                f"{name} must have {hidden_size} columns (those of position_weight), got {tuple(table.shape)}"
            )
    check_vectors(hidden_size, weight=weight, bias=bias)
    check_devices(
        position_ids=position_ids, source=source, word_weight=word_weight, position_weight=position_weight,
        weight=weight, bias=bias,
    )  # fmt: skip
    check_dropout(dropout, source.device)
    words = word_weight if inputs_embeds is None else inputs_embeds
    assert words is not None
    if runs_kernels(backend, words, position_weight, weight, bias, hidden_size=hidden_size):
        from ..kernels import embedding as kernel

        padding, position_padding = (-1 if index is None else index for index in (padding_idx, position_padding_idx))
        save = needs_grad(words, position_weight, weight, bias)
        y: Tensor = kernel.embedding_layer_norm(
            input_ids, words, position_ids, position_weight, weight, bias, eps, padding, position_padding, dropout, save
        )[0]
        return y
    compiling = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    if position_ids.device.type != "cpu" or compiling:
        # Unread values: an index out of range must not become a device-side assert.
        position_ids = position_ids.clamp(0, position_weight.shape[0] - 1)
        input_ids = None if input_ids is None else input_ids.clamp(0, words.shape[0] - 1)
    rows = words if input_ids is None else F.embedding(input_ids, words, padding_idx)
    rows = rows + F.embedding(position_ids, position_weight, position_padding_idx)
    return dropout_rows(F.layer_norm(rows, weight.shape, weight, bias, eps), dropout)

"""Models of the same size that the padding-free one is timed against; those that can be share its weights."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaModel

from erniem_fast import ErnieMConfig, PackedBatch, reference
from erniem_fast.configuration import POSITION_OFFSET

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""From query, key, value (total_tokens, num_heads, head_dim), cu_seqlens and max_seqlen to the like of query."""


class SdpaSelfAttention(reference.ErnieMSelfAttention):
    """The reference's attention by `scaled_dot_product_attention`, dropout included.

    Attributes:
        unmasked: True if every token is real, so that no mask is needed.
    """

    unmasked = False

    def forward(self, hidden_states: Tensor, mask: Tensor | None, head_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        query, key, value = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = None if self.unmasked else mask
        dropout_p = self.dropout.p if self.training else 0.0
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)
        return context.transpose(1, 2).flatten(2), context


def use_sdpa(model: reference.ErnieMModel, unmasked: bool) -> None:
    """Give the reference PyTorch's fused attention, in place."""
    for module in model.modules():
        if type(module) is reference.ErnieMSelfAttention:
            module.__class__ = SdpaSelfAttention
            vars(module)["unmasked"] = unmasked


def linear_products(layer: Any) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of a layer's linear layers, those of q, k and v in one."""
    attention = layer.self_attn.self_attn
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    qkv = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
    linears = (layer.self_attn.out_proj, layer.linear1, layer.linear2)
    return [qkv, *((linear.weight, linear.bias) for linear in linears)]


class UnpaddedLayer(nn.Module):
    """A layer of the reference on packed rows."""

    def __init__(self, layer: Any, attend: Attend) -> None:
        super().__init__()
        self.layer = layer
        self.attend = attend

    def forward(self, rows: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Run on rows (total_tokens, hidden_size)."""
        layer, attention = self.layer, self.layer.self_attn.self_attn
        qkv = F.linear(rows, *linear_products(layer)[0])
        query, key, value = qkv.unflatten(-1, (3, attention.num_attention_heads, attention.head_dim)).unbind(1)
        context = self.attend(query, key, value, cu_seqlens, max_seqlen).flatten(1)
        rows = layer.norm1(rows + layer.dropout1(layer.self_attn.out_proj(context)))
        inner = layer.dropout(layer.activation(layer.linear1(rows)))
        return layer.norm2(rows + layer.dropout2(layer.linear2(inner)))  # type: ignore[no-any-return]


class UnpaddedModel(nn.Module):
    """The reference's weights on packed rows, around any attention of packed sequences.

    Args:
        model: owner of the modules.
        attend: the attention.
    """

    def __init__(self, model: reference.ErnieMModel, attend: Attend) -> None:
        super().__init__()
        self.model = model
        self.layers = nn.ModuleList(UnpaddedLayer(layer, attend) for layer in model.encoder.layers)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Last hidden state (total_tokens, hidden_size)."""
        embeddings = self.model.embeddings
        assert batch.input_ids is not None
        positions = embeddings.position_embeddings(batch.position_ids + POSITION_OFFSET)
        rows: Tensor = embeddings.layer_norm(embeddings.word_embeddings(batch.input_ids) + positions)
        rows = embeddings.dropout(rows)
        for layer in self.layers:
            rows = layer(rows, batch.cu_seqlens, batch.max_seqlen)
        return rows


def xlm_roberta(config: ErnieMConfig, device: str, dtype: torch.dtype) -> nn.Module:
    """transformers' XLM-R of the same size, with random weights of its own."""
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = {name: getattr(config, name) for name in (*names, "max_position_embeddings")}
    same = XLMRobertaConfig(**sizes, type_vocab_size=1, pad_token_id=1, attn_implementation="sdpa")
    with torch.device(device):
        model: nn.Module = XLMRobertaModel(same, add_pooling_layer=False)
    return model.to(dtype)

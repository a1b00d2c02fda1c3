"""A BERT layer of transformers on packed rows."""

from typing import Any

from erniem_fast.encoder import AttentionParts, LayerParts


def parts_of(layer: Any, index: int) -> LayerParts:
    """Hand over the parts of a `BertLayer`."""
    heads, joined, inner, output = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
    attention = AttentionParts(
        heads.query, heads.key, heads.value, heads.num_attention_heads, heads.dropout, index, causal=heads.is_causal
    )

    return LayerParts(
        attention, joined.dense, joined.dropout, joined.LayerNorm, inner.dense, inner.intermediate_act_fn, None,
        output.dense, output.dropout, output.LayerNorm, index,
    )  # fmt: skip

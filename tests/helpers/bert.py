"""A BERT layer of transformers on packed rows."""

from typing import Any

from erniem_fast.families import BertKindLayer
from erniem_fast.layer_parts import AttentionParts, LayerParts


def parts_of(layer: Any, index: int) -> LayerParts:
    """Hand over the parts of a `BertLayer`."""
    parts = BertKindLayer.parts(layer, index)
    heads, attention = layer.attention.self, parts.attention
    assert isinstance(attention, AttentionParts)
    return parts._replace(attention=attention._replace(dropout=heads.dropout, causal=heads.is_causal))

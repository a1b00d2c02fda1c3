"""A layer of inference on a CPU in which everything is plain: decided once, and then its operations alone.

Elsewhere each operation of a layer is decided on and checked by itself, which shows where there are only a few short
sequences to compute.
"""

from typing import Any

from torch import Tensor, nn

from . import fusion
from .fusion import PackedContext
from .layer_parts import AttentionParts, LayerParts
from .ops import attention_cpu, rows_cpu


def run(parts: LayerParts, x: Tensor, context: PackedContext) -> Tensor | None:
    """Compute a layer.

    Args:
        parts: of the layer.
        x: (total_tokens, hidden_size).
        context: of the batch.

    Returns:
        (total_tokens, hidden_size) or (num_kept, hidden_size); None where a part must be called, anything but values
        is asked for, or the operations for a CPU do not take them.
    """
    attention, plan = parts.attention, context.plan
    if not x.is_cpu or plan is None or plan.arrangement is None or not isinstance(attention, AttentionParts):
        return None
    if attention.causal or context.batch.prefix_lens is not None or context.backend != "torch":
        return None
    for dropout in (attention.dropout, parts.dropout1, parts.dropout, parts.dropout2):
        if fusion.take_over(dropout, context, 0) != (True, None):
            return None
    linears: list[Any] = [attention.query, attention.key, attention.value, parts.out, parts.linear1, parts.linear2]
    norm1, norm2, name = parts.norm1, parts.norm2, fusion.fused_activation(parts.activation)
    if name is None or not all(fusion.is_plain(linear, nn.Linear) for linear in linears):
        return None
    if not (fusion.is_plain(norm1, nn.LayerNorm) and fusion.is_plain(norm2, nn.LayerNorm)):
        return None
    query, key, value, out, linear1, linear2 = linears
    operands = [operand for linear in linears for operand in (linear.weight, linear.bias)]
    if linear1.bias is None or not rows_cpu.takes(x, *operands):
        return None
    filled = rows_cpu.fill(x)
    qkv = fusion.project_qkv(query, key, value, filled)
    qkv = qkv.unflatten(2, (attention.num_heads, qkv.shape[2] // attention.num_heads))
    heads = attention_cpu.attention_cpu(qkv, plan.arrangement.sequences(qkv.dtype)).flatten(1)
    heads, rows = (heads, filled) if context.rows_to_keep is None else (context.kept(heads), context.kept(x))
    rows = norm1.forward(rows_cpu.add_linear(heads, out.weight, out.bias, rows))
    rows = rows_cpu.add_mlp(rows, linear1.weight, linear1.bias, linear2.weight, linear2.bias, name, rows)
    rows = norm2.forward(rows)
    return rows if context.rows_to_keep is not None else rows[: x.shape[0]]

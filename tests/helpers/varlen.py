"""Attention of packed sequences by one call a sequence."""

import torch
from torch import Tensor


def plain_attention(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """In the place of `varlen_attn`: (total_tokens, num_heads, head_dim) operands."""
    spans = cu_seqlens.diff().tolist()
    parts = zip(*(operand.split(spans) for operand in (query, key, value)), strict=True)
    heads = [[operand.transpose(0, 1) for operand in part] for part in parts]
    return torch.cat([torch.nn.functional.scaled_dot_product_attention(*part).transpose(0, 1) for part in heads])

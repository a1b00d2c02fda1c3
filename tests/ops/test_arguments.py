"""Arguments that no operation takes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.formulas import offsets
from torch import Tensor

from erniem_fast import ops


def good_arguments() -> dict[str, dict[str, Any]]:
    rows, vector = torch.randn(4, 6), torch.randn(6)
    return {
        "varlen_attention": {"qkv": torch.randn(4, 3, 2, 5), "cu_seqlens": offsets([3, 1]), "max_seqlen": 3},
        "dropout_add_layer_norm": {"x": rows, "residual": rows, "weight": vector, "bias": vector, "eps": 1e-5},
        "bias_activation_dropout": {"x": rows, "bias": vector},
        "mlp": {"x": rows, "weight1": torch.randn(8, 6), "bias1": torch.randn(8), "weight2": torch.randn(6, 8)},
        "embedding_layer_norm": {
            "input_ids": torch.arange(4), "position_ids": torch.arange(4), "word_weight": torch.randn(9, 6),
            "position_weight": torch.randn(9, 6), "weight": vector, "bias": vector, "eps": 1e-5,
        },
        "linear_cross_entropy": {
            "x": rows, "weight": torch.randn(9, 6), "bias": torch.randn(9), "targets": torch.tensor([3, -100, 0, 8]),
        },
    }  # fmt: skip


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("varlen_attention", {"qkv": torch.randn(4, 2, 2, 5)}, r"qkv must have shape .* got \(4, 2, 2, 5\)"),
    ("varlen_attention", {"cu_seqlens": torch.tensor([0, 4])}, "cu_seqlens must be int32 .* got torch.int64"),
    (
        "varlen_attention",
        {"prefix_lens": torch.tensor([1])},
        r"prefix_lens must be int32 of shape \(2,\) .* got torch.int64 \(1,\)",
    ),
    ("mlp", {"weight2": torch.tensor(1.0)}, r"weight2 must fit x .* got \(\)"),
    ("embedding_layer_norm", {"input_ids": torch.tensor(1)}, r"input_ids .* must have shape .* got \(\)"),
    ("embedding_layer_norm", {"position_weight": torch.randn(6)}, r"position_weight must have shape .* got \(6,\)"),
    ("embedding_layer_norm", {"word_weight": None}, "word_weight must be a table where input_ids are given, got None"),
    ("varlen_attention", {"max_seqlen": torch.tensor(3)}, "max_seqlen must be an int, got Tensor"),
    ("varlen_attention", {"backend": "cuda"}, "backend must be one of .* got 'cuda'"),
    ("varlen_attention", {"qkv": torch.empty(4, 3, 2, 5, device="meta")}, "cu_seqlens must be on meta.*, got cpu"),
    ("dropout_add_layer_norm", {"residual": torch.randn(4, 5)}, r"residual must have shape \(4, 6\)"),
    ("dropout_add_layer_norm", {"weight": torch.randn(5)}, r"weight must have shape \(6,\), got \(5,\)"),
    ("bias_activation_dropout", {"bias": torch.randn(1)}, r"bias must have shape \(6,\)"),
    ("bias_activation_dropout", {"x": torch.randn(4)}, "x must have shape"),
    ("bias_activation_dropout", {"activation": "tanh"}, "activation must be one of gelu, relu, got 'tanh'"),
    ("mlp", {"activation": "gelu_new"}, "activation must be one of gelu, relu, got 'gelu_new'"),
    ("mlp", {"weight1": torch.randn(5, 6)}, r"weight1 must fit x \(4, 6\) and bias1 \(8,\), got \(5, 6\)"),
    ("mlp", {"weight2": torch.randn(6, 5)}, r"weight2 must fit"),
    ("embedding_layer_norm", {"word_weight": torch.randn(9, 5)}, r"word_weight must have 6 columns .* got \(9, 5\)"),
    ("embedding_layer_norm", {"input_ids": None}, "exactly one of"),
    ("embedding_layer_norm", {"inputs_embeds": torch.randn(4, 6)}, "exactly one of"),
    ("embedding_layer_norm", {"position_ids": torch.arange(3)}, r"got \(4,\) and position_ids \(3,\)"),
    ("linear_cross_entropy", {"weight": torch.randn(9, 5)}, r"weight must have shape \(vocab_size, 6\), got \(9, 5\)"),
    ("linear_cross_entropy", {"bias": torch.randn(6)}, r"bias must have shape \(9,\), got \(6,\)"),
    ("linear_cross_entropy", {"targets": torch.arange(3)}, r"targets must have shape \(4,\), got \(3,\)"),
    (
        "linear_cross_entropy",
        {"targets": torch.tensor([3, -100, 9, 0])},
        r"targets must lie in \[0, 9\) \(vocab_size\) or be -100 \(ignored\), got 9",
    ),
    ("linear_cross_entropy", {"targets": torch.tensor([3, -1, 2, 0])}, r"targets must lie in .* got -1"),
    (
        "linear_cross_entropy",
        {"weight": torch.randn(9, 6).bfloat16()},
        r"weight must have the dtype of x, torch\.float32, got torch\.bfloat16",
    ),
    ("linear_cross_entropy", {"backend": "cuda"}, "backend must be one of .* got 'cuda'"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD)
def test_bad_arguments(name: str, change: dict[str, Any], message: str) -> None:
    operation: Callable[..., Tensor] = getattr(ops, name)
    arguments = good_arguments()[name]
    assert operation(**arguments).isfinite().all()
    with pytest.raises(ValueError, match=message):
        operation(**(arguments | change))

"""Embedding sum, layer-norm and dropout by torch, against plain formulas in float64."""

import pytest
import torch
import torch.nn.functional as F
from helpers.formulas import assert_agrees, drop_rows
from torch import Tensor

from erniem_fast import ops
from erniem_fast.ops import Dropout

CPU = torch.device("cpu")


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_forward_and_backward(p: float) -> None:
    dropout = Dropout(p, ops.draw_seed(CPU), 5) if p else None
    ids, places = torch.randint(0, 13, (9,)), torch.randint(0, 8, (9,))
    words, positions, weight, bias, x = leaf(13, 21), leaf(8, 21), leaf(21), leaf(21), leaf(9, 21)
    found = ops.embedding_layer_norm(ids, places, words, positions, weight, bias, 1e-5, dropout=dropout)
    expected = drop_rows(F.layer_norm(words[ids] + positions[places], (21,), weight, bias, 1e-5), dropout)
    assert_agrees(found, expected, [words, positions, weight, bias])
    found = ops.embedding_layer_norm(
        None, places, words, positions, weight, bias, 1e-5, inputs_embeds=x, dropout=dropout
    )
    expected = drop_rows(F.layer_norm(x + positions[places], (21,), weight, bias, 1e-5), dropout)
    assert_agrees(found, expected, [x, positions, weight, bias])


def test_padding_id_gets_no_gradient() -> None:
    words, positions = torch.randn(7, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    weight, bias = torch.randn(4), torch.randn(4)
    ids = torch.tensor([1, 3, 1, 4])
    out = ops.embedding_layer_norm(
        ids, ids, words, positions, weight, bias, 1e-5, padding_idx=1, position_padding_idx=3
    )
    (out * torch.randn_like(out)).sum().backward()
    for table, padding, other in ((words, 1, 3), (positions, 3, 1)):
        assert table.grad is not None
        assert (table.grad[padding] == 0).all()
        assert (table.grad[other] != 0).any()


def test_a_table_that_is_not_read_may_be_missing() -> None:
    places = torch.randint(0, 8, (9,))
    positions, weight, bias, x = leaf(8, 21), leaf(21), leaf(21), leaf(9, 21)
    found = ops.embedding_layer_norm(None, places, None, positions, weight, bias, 1e-5, inputs_embeds=x)
    expected = F.layer_norm(x + positions[places], (21,), weight, bias, 1e-5)
    assert_agrees(found, expected, [x, positions, weight, bias])
    with pytest.raises(ValueError, match="word_weight must be a table where input_ids are given, got None"):
        ops.embedding_layer_norm(places, places, None, positions, weight, bias, 1e-5)

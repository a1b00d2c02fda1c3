"""Samples as a tokenized dataset holds them, out of a padded batch."""

from typing import Any

import torch
from torch import Tensor

Sample = dict[str, Any]


def samples_of(inputs: dict[str, Tensor]) -> list[Sample]:
    """Samples without padding, labels included, of a batch padded on the right.

    Args:
        inputs: `input_ids`, `attention_mask`, further ids and labels, (batch, [num_choices,] seq_len) or (batch, ...).
    """
    mask = inputs["attention_mask"].bool()
    kept = {name: value for name, value in inputs.items() if name != "attention_mask"}
    return [{name: _real(value[index], mask[index]) for name, value in kept.items()} for index in range(len(mask))]


def _real(value: Tensor, mask: Tensor) -> Any:
    if mask.dim() == 2 and value.shape == mask.shape:
        return [row[real].tolist() for row, real in zip(value, mask, strict=True)]
    return value[mask].tolist() if value.shape == mask.shape else value.tolist()


def same_rows(found: Tensor, expected: Tensor, mask: Tensor) -> None:
    """Check that outputs are equal, those of tokens where these are real."""
    assert found.shape == expected.shape
    if found.shape[: mask.dim()] == mask.shape:
        found, expected = found[mask.bool()], expected[mask.bool()]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

"""Memory is counted as the report says."""

import pytest
import torch

from bench.engine import memory

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts the GPU's memory")


def test_saved_bytes_counts_each_storage_once_and_no_parameter() -> None:
    linear = torch.nn.Linear(8, 4, bias=False)
    x = torch.randn(16, 8)

    def forward() -> torch.Tensor:
        return linear(x) * linear(x).exp()

    # The input once, both factors of the product; the exponential saves its result, which is one of them.
    assert memory.activation_bytes(linear, forward) == (16 * 8 + 2 * 16 * 4) * 4


def test_peak_bytes_counts_what_is_held_at_once() -> None:
    def run_twice() -> None:
        for _ in range(2):
            torch.empty(2**20, dtype=torch.uint8)

    def hold_two() -> None:
        _ = torch.empty(2**20, dtype=torch.uint8), torch.empty(2**20, dtype=torch.uint8)

    assert memory.peak_bytes(run_twice) == 2**20
    assert memory.peak_bytes(hold_two) == 2**21

"""Work of the whole encoder against torch's own count, and against the sum of its parts."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.engine.shapes import BOTH, FORWARD, Sizes
from bench.engine.work import Work
from bench.models.work import encoder_parts, encoder_work, products_work
from bench.ops.attention import attention_work
from erniem_fast import reference

LENGTHS = (3, 1, 5, 2)
ROWS = sum(LENGTHS)


def counted(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("passes", [FORWARD, BOTH])
def test_encoder_flops_are_what_torch_counts_of_the_reference(passes: str) -> None:
    sizes, batch, length = Sizes(32, 4, 48, 50, 2), 3, 8
    model = reference.ErnieMModel(sizes.config(), add_pooling_layer=False).eval()
    ids = torch.randint(4, 50, (batch, length))

    def run() -> None:
        rows = model(input_ids=ids).last_hidden_state
        if passes == BOTH:
            rows.square().sum().backward()

    again = attention_work((length,) * batch, 4, 8, 4).flops // 2 * sizes.num_layers if passes == BOTH else 0
    assert counted(run) == encoder_work((length,) * batch, sizes, 4, passes).flops - again


def test_encoder_is_the_sum_of_its_parts() -> None:
    sizes = Sizes(32, 4, 48, 50, 3)
    parts = encoder_parts(LENGTHS, sizes, 2, BOTH, dropout=True)
    assert len(parts) == 1 + 3 * 8
    whole = encoder_work(LENGTHS, sizes, 2, BOTH, dropout=True)
    assert whole == Work(sum(part.flops for part in parts), sum(part.bytes for part in parts))
    products = products_work(ROWS, sizes, 2, BOTH)
    attention = attention_work(LENGTHS, 4, 8, 2, BOTH) * 3
    assert whole.flops == products.flops + attention.flops
    assert products.bytes + attention.bytes < whole.bytes

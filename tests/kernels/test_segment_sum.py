"""The kernels that add up rows by id."""

import pytest
import torch
from helpers.closeness import error
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from erniem_fast.kernels.segment_sum import CHUNK, segment_sum, segment_sum_oracle

pytestmark = pytest.mark.usefixtures("_poisoned")


@settings(max_examples=10)
@given(data=st.data())
def test_segment_sum(device: torch.device, data: st.DataObject) -> None:
    runs = data.draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3 * CHUNK)), min_size=1, max_size=6))
    ids = torch.cat([torch.full((count,), id) for id, count in runs])
    ids = ids[torch.randperm(len(ids))].to(device)
    padding = data.draw(st.integers(-1, 4))
    rows = torch.randn(len(ids), 24, device=device)
    found = segment_sum(rows, ids, 6, padding, torch.float32)
    assert error(found, segment_sum_oracle(rows.double(), ids, 6, padding)) < 1e-4
    assert torch.equal(found, segment_sum(rows, ids, 6, padding, torch.float32))
    assert padding < 0 or (found[padding] == 0).all()


def test_gradcheck_of_the_oracle() -> None:
    rows, ids = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 0])
    assert torch.autograd.gradcheck(lambda rows: segment_sum_oracle(rows, ids, 3, 1), rows)

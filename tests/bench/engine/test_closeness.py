"""A provider's results are held against the oracle's."""

import pytest
import torch

from bench.engine.closeness import WrongResultError, compare


def test_sixteen_bits_may_be_twice_as_wrong_as_plain_pytorch() -> None:
    right = torch.tensor([1.0, -2.0], dtype=torch.float64)
    plain = (right + torch.tensor([0.01, 0.0])).bfloat16()
    near, far = (right + torch.tensor([0.0, error], dtype=torch.float64) for error in (0.015, 0.05))
    close = compare([near], [right], [plain])
    assert 0 < close.share <= 1
    assert close.error == pytest.approx(0.015)
    with pytest.raises(WrongResultError, match="error of the output"):
        compare([far], [right], [plain])
    with pytest.raises(WrongResultError, match="error of gradient 1"):
        compare([right, far], [right, right], [plain, plain])
    with pytest.raises(WrongResultError, match="1 results, expected 2"):
        compare([right], [right, right], None)

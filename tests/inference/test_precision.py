"""The dtype that a device computes fastest in."""

import pytest
import torch
from torch import Tensor

from erniem_fast.inference import precision
from erniem_fast.inference.precision import auto_dtype


@pytest.fixture(autouse=True)
def _measured_anew() -> None:
    precision._is_faster.cache_clear()


@pytest.mark.parametrize(("ratio", "expected"), [(6.0, torch.bfloat16), (1.1, torch.float32), (0.3, torch.float32)])
def test_bfloat16_where_its_products_take_less(
    ratio: float, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor that multiplies bfloat16 so many times as fast as float32."""
    now = 0.0

    def linear(x: Tensor, weight: Tensor) -> Tensor:
        nonlocal now
        now += 1 / ratio if x.dtype == torch.bfloat16 else 1
        return x @ weight.t()

    monkeypatch.setattr(precision.F, "linear", linear)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now)
    for _ in range(2):
        assert auto_dtype(torch.device("cpu")) == expected
        now, ratio = 0.0, 1 / ratio  # measured once in a process


@pytest.mark.parametrize("supported", [False, True])
def test_a_gpu_is_asked(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert auto_dtype(torch.device("cuda")) == (torch.bfloat16 if supported else torch.float32)


def test_other_devices_compute_in_float32() -> None:
    assert auto_dtype(torch.device("mps")) == torch.float32

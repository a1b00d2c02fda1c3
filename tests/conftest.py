"""Fixtures that several test modules share."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# The millions of objects of what the tests import are looked through by each collection, for nothing.
gc.disable()

# Without a GPU the kernels are interpreted; triton asks when it defines them.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from helpers.pairs import SIZES, make

from erniem_fast import ErnieMConfig

Pair = tuple[Any, Any]
VOCABULARY = {"vocab_size": 97}

# A busy machine fails no property, and a folder shared by the examples of one is no accident.
settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Models this small only wait for their threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _interrupts_arrive() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would the processes that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fresh_randomness() -> None:
    """Another draw every run; the seed is printed with a failure."""
    seed = torch.seed() % 2**31
    print(f"torch seed {seed}")
    torch.manual_seed(seed)


@pytest.fixture(autouse=True)
def _device_errors_stay_here() -> Iterator[None]:
    """A kernel that goes wrong is seen in its own test, and takes with it only the process whose context it broke."""
    yield
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except Exception as error:
        print(f"the CUDA context is lost: {error}", file=sys.stderr, flush=True)
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(70)  # xdist names the test and starts another worker
        pytest.exit(f"the CUDA context is lost: {error}", 70)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Device of the kernels: a GPU, or the CPU, where they are interpreted."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def _poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def _one_order(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of the interpreter add up in one order, as tensor cores do: numpy's depends on the place in the tile."""

    def matmul(a: np.ndarray, b: np.ndarray, dtype: Any = None) -> np.ndarray:
        out = np.zeros((a.shape[0], b.shape[1]), dtype or np.result_type(a, b))
        for k in range(a.shape[1]):
            out += a[:, k, None] * b[k]
        return out

    if device.type == "cpu":
        monkeypatch.setattr("triton.runtime.interpreter.np.matmul", matmul)


@pytest.fixture
def tiny_config() -> Callable[..., ErnieMConfig]:
    return lambda **changes: ErnieMConfig(**(SIZES | VOCABULARY | changes))


@pytest.fixture
def make_pair() -> Callable[..., Pair]:
    """The reference and the padding-free model of one class with the same random weights, in eval mode."""
    return lambda *arguments, **changes: make(*arguments, **(VOCABULARY | changes))


def pytest_collection_finish() -> None:
    gc.enable()
    gc.collect()
    gc.freeze()

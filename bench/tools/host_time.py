"""Host time of the launchers with the GPU's part left out: what a small batch waits for.

python -m bench.tools.host_time                     # microseconds of a call
python -m bench.tools.host_time --against FOLDER    # beside those of the kernels in another folder, by turns

A driver whose launch does nothing takes the place of Triton's; kernels are compiled for sm_90. Tensors lie on the CPU
and are narrow, since torch computes what it launches. No figure is a GPU's: compare two of them.
"""

import argparse
import sys
import timeit
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from triton.runtime.driver import driver

from bench.engine.environment import ROOT

from .compile_kernels import a_driver

TOKENS, LONG, HEADS, HIDDEN, INTERMEDIATE, EPS = 64, 512, 12, 128, 512, 1e-5
Calls = dict[str, Callable[[], Any]]


def silent_driver() -> Any:
    """A driver of an H100 that launches nothing."""
    return SimpleNamespace(
        **vars(a_driver("sm_90")),
        launcher_cls=lambda source, metadata: lambda *args: None,
        utils=SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 232448},
            load_binary=lambda *args: (1, 1, 0, 0, 1024),
            unload_module=lambda module: None,
        ),
    )


def load(folder: Path, name: str) -> Callable[[str], Any]:
    """Import a folder of kernels as a package of some name: the function that gives its modules."""
    package = sys.modules[name] = ModuleType(name)
    package.__path__ = [str(folder)]
    real = torch.library.custom_op

    def renamed(operation: str, *args: Any, **kwargs: Any) -> Any:
        return real(operation.replace("erniem_fast", name), *args, **kwargs)

    def module(of: str) -> Any:
        with patch.object(torch.library, "custom_op", renamed):
            return import_module(f"{name}.{of}")

    return module


def rows(*shape: int) -> Tensor:
    return torch.randn(shape).to(torch.bfloat16)


def attention_calls(kernels: Callable[[str], Any], length: int, dropout: Any) -> Calls:
    """Of a sequence of some length."""
    attention = kernels("attention")
    offsets = torch.tensor([0, length], dtype=torch.int32)
    tiles = attention.attention_tiles(offsets, length, length, 0)
    qkv, out = rows(length, 3, HEADS, 64), rows(length, HEADS, 64)
    shared = (offsets, tiles, length, 0, None, False)
    saved = (out, qkv, out, torch.zeros(HEADS, length), *shared, dropout)
    return {
        f"attention_tiles, {length}": lambda: attention.attention_tiles(offsets, length, length, 0),
        f"attention, {length}": lambda: attention.varlen_attention(qkv, *shared, None),
        f"attention backward, {length}": lambda: attention.varlen_attention_backward(*saved),
    }


def calls(kernels: Callable[[str], Any]) -> Calls:
    """Calls of the launchers by name; backward passes have a dropout."""
    activation, embedding, norm = kernels("activation"), kernels("embedding"), kernels("layer_norm")
    dropout = kernels("dropout").Dropout(0.1, torch.zeros(1, dtype=torch.int64), 1)
    x, weight, vector = rows(TOKENS, HIDDEN), rows(INTERMEDIATE, HIDDEN), rows(HIDDEN)
    inner, bias, ids, stats = rows(TOKENS, INTERMEDIATE), rows(INTERMEDIATE), torch.arange(TOKENS), torch.ones(TOKENS)
    tables = (ids, x, ids, x, vector)
    saved = (x, x, stats, stats, vector, x.dtype, x.dtype, True, dropout)
    return {
        **attention_calls(kernels, TOKENS, dropout),
        **attention_calls(kernels, LONG, dropout),
        "layer_norm": lambda: norm.dropout_add_layer_norm(x, x, vector, vector, vector, EPS, None, False),
        "layer_norm backward": lambda: norm.dropout_add_layer_norm_backward(*saved),
        "activation": lambda: activation.bias_activation_dropout(inner, bias, "gelu", None),
        "activation backward": lambda: activation.bias_activation_dropout_backward(
            inner, inner, bias, "gelu", dropout, True
        ),
        "embedding": lambda: embedding.embedding_layer_norm(*tables, vector, EPS, 1, 1, None, False),
        "embedding backward": lambda: embedding.embedding_layer_norm_backward(
            x, *tables, stats, stats, 1, 1, dropout, False, False
        ),
        "linear": lambda: kernels("linear").linear(x, weight, None),
    }


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="folder of kernels to compare with")
    folders = [ROOT / "kernels", *filter(None, [parser.parse_args(argv).against])]
    driver.set_active(silent_driver())
    torch.set_num_threads(1)
    sides = [calls(load(folder, f"kernels_{index}")) for index, folder in enumerate(folders)]
    for name in sides[0]:
        timers = [timeit.Timer(side[name]) for side in sides]
        rounds = [[timer.timeit(50) / 50 * 1e6 for timer in timers] for _ in range(60)]
        least = [min(times) for times in zip(*rounds, strict=True)]
        print(f"{name:26}", *(f"{time:7.1f}" for time in least), *(f"{least[0] / time:6.2f}" for time in least[1:]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

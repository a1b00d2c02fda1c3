"""What the tuning times: each kernel on lengths and sizes that take the row of the table in question."""

import functools
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .timing import in_turns

TOKENS, HEADS, HEAD_DIM = 65536, 12, 64
DTYPE = torch.bfloat16
LENGTHS = {16: (16,), 32: (32,), 64: (64, 128), 128: (512,)}
"""Lengths of sequences that take a tile; the longer ones of 64 have several tiles a sequence."""
SECONDS = 1.0
"""Of timing the epilogue at each of these numbers of rows."""
FUSED_ROWS = (512, 2048, 8192, 32768, TOKENS)


def linears(gelu: bool) -> tuple[tuple[int, int], ...]:
    """(in_features, out_features) of the linear layers of base and large; with GELU: linear1."""
    first = ((768, 3072), (1024, 4096))
    return first if gelu else ((768, 2304), (768, 768), (3072, 768), (1024, 1024), (4096, 1024), *first)


def workload(entry: tuple[Any, ...], device: torch.device) -> Callable[[], None]:
    """Runs all that takes a row of the tables."""
    runs = _runs(entry, device)

    def run() -> None:
        for one in runs:
            one()

    return run


@functools.lru_cache(maxsize=4)
def _runs(entry: tuple[Any, ...], device: torch.device) -> tuple[Callable[[], object], ...]:
    if entry[0] == "attention":
        _, kernel, _, tile, dropout = entry
        lengths = {"in_one": LENGTHS[tile][:1], "rows": LENGTHS[tile][-1:], "columns": LENGTHS[tile][-1:]}
        chosen = lengths.get(kernel, LENGTHS[tile])
        return tuple(_attention(length, 0.1 * dropout, kernel != "forward", device) for length in chosen)
    if entry[0] == "linear":
        return tuple(_linear(size, out, entry[2], device) for size, out in linears(entry[2]))
    return tuple(_rows(entry[1], entry[2], p, device) for p in (0.0, 0.1))


def _randn(*shape: int, device: torch.device) -> Tensor:
    return torch.randn(*shape, device=device, dtype=DTYPE)


def _attention(length: int, p: float, backward: bool, device: torch.device) -> Callable[[], object]:
    from erniem_fast.kernels import attention

    cu_seqlens = torch.arange(0, TOKENS + 1, length, device=device, dtype=torch.int32)
    tiles = attention.attention_tiles(cu_seqlens, length, TOKENS, False)
    qkv, grad = _randn(TOKENS, 3, HEADS, HEAD_DIM, device=device), _randn(TOKENS, HEADS, HEAD_DIM, device=device)
    rest = (cu_seqlens, tiles, length, None, p, _seed(device), 1, False)
    if not backward:
        return lambda: attention.varlen_attention.forward(qkv, *rest)
    out, lse = attention.varlen_attention.forward(qkv, *rest)
    return lambda: attention.varlen_attention_backward.forward(grad, qkv, out, lse, *rest)


def _linear(size: int, out: int, gelu: bool, device: torch.device) -> Callable[[], object]:
    from erniem_fast.kernels import linear

    x, weight, bias = (_randn(*shape, device=device) for shape in ((TOKENS, size), (out, size), (out,)))
    return lambda: linear.launch_linear(x, weight, bias, gelu)


def _rows(kernel: str, wide: bool, p: float, device: torch.device) -> Callable[[], object]:
    from erniem_fast.kernels import activation, embedding, layer_norm

    size, seed = 3072 if wide else 768, _seed(device)
    x, vector = _randn(TOKENS, size, device=device), _randn(size, device=device)
    if kernel.startswith("gelu"):
        if kernel.endswith("forward"):
            return lambda: activation.bias_gelu_dropout.forward(x, vector, p, seed, 1)
        return lambda: activation.bias_gelu_dropout_backward.forward(x, x, vector, p, seed, 1, True)
    if kernel.startswith("layer_norm"):
        norm = layer_norm.dropout_add_layer_norm
        forward = (x, x, vector, vector, vector, 1e-5, p, seed, 1, True)
        if kernel.endswith("forward"):
            return lambda: norm.forward(*forward)
        _, z, mean, rstd = norm.forward(*forward)
        back = layer_norm.dropout_add_layer_norm_backward
        return lambda: back.forward(x, z, mean, rstd, vector, DTYPE, DTYPE, True, p, seed, 1)
    words, positions = _randn(250002, size, device=device), _randn(514, size, device=device)
    ids, places = (torch.randint(most, (TOKENS,), device=device) for most in (250002, 512))
    tables = (ids, words, places, positions, vector)
    if kernel.endswith("forward"):
        return lambda: embedding.embedding_layer_norm.forward(*tables, vector, 1e-5, 1, 1, p, seed, 0, True)
    _, mean, rstd = embedding.embedding_layer_norm.forward(*tables, vector, 1e-5, 1, 1, p, seed, 0, True)
    back = embedding.embedding_layer_norm_backward
    return lambda: back.forward(x, *tables, mean, rstd, 1, 1, p, seed, 0, False, False)


def _seed(device: torch.device) -> Tensor:
    return torch.randint(2**62, (1,), device=device)


def fused_gelu_times(device: torch.device) -> list[tuple[int, float, float]]:
    """(rows, seconds of linear1 with GELU in its epilogue, seconds of cuBLAS and a pass for GELU), base and large."""
    from erniem_fast.kernels import activation, linear

    found = []
    for rows in FUSED_ROWS:
        layers = [
            [_randn(*shape, device=device) for shape in ((rows, size), (out, size), (out,))]
            for size, out in linears(True)
        ]

        def fused(layers: list[list[Tensor]] = layers) -> None:
            for x, weight, bias in layers:
                linear.launch_linear(x, weight, bias, True)

        def apart(layers: list[list[Tensor]] = layers) -> None:
            for x, weight, bias in layers:
                activation.launch_forward(F.linear(x, weight), bias, 0.0, None, 0)

        times, failures = in_turns({"fused": fused, "apart": apart}, device.type, SECONDS)
        if failures:
            raise RuntimeError("; ".join(failures.values()))
        found.append((rows, median(times["fused"].device_s), median(times["apart"].device_s)))
    return found

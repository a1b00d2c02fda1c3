"""Every kernel on the last rows of tensors of more than 2**31 elements.

Run by tests/kernels/test_backend.py in a process of its own, under TRITON_INTERPRET=1. Memory that is not touched is
never committed, and only the programs that work on those rows are run; a 32-bit offset would end in a segmentation
fault.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from triton.runtime.interpreter import interpreter_builder

from erniem_fast.kernels import (
    activation,
    attention,
    attention_backward,
    attention_forward,
    embedding,
    layer_norm,
    linear,
    linear_cross_entropy,
    segment_sum,
)
from erniem_fast.kernels.configs import RowConfig


class Only:
    """A kernel that runs only some programs of its grid; negative numbers count from the end."""

    def __init__(self, kernel: Any, programs: Iterable[int]) -> None:
        self.kernel, self.programs = kernel, list(programs)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            set_index = interpreter_builder.set_grid_idx

            def shifted(x: int, y: int, z: int) -> None:
                interpreter_builder.grid_dim = (*grid, 1, 1)
                set_index(self.programs[x] % grid[0], y, z)

            interpreter_builder.set_grid_idx = shifted
            try:
                self.kernel[(len(self.programs),)](*args, **kwargs)
            finally:
                interpreter_builder.set_grid_idx = set_index

        return launch


def far(*shape: int) -> Tensor:
    tensor = torch.empty(shape)
    assert tensor.numel() > 2**31
    return tensor


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)


def check_attention(length: int, forward: range, backward: range) -> None:
    """The second of two sequences; the first is most of a million tokens, and no program of it is run."""
    total, heads, dim = 1_000_000, 12, 64
    for module, names, programs in (
        (attention_forward, ["_attn_fwd_kernel"], forward),
        (
            attention_backward,
            ["_attn_bwd_single_tile_kernel", "_attn_bwd_dq_kernel", "_attn_bwd_dkdv_kernel"],
            backward,
        ),
    ):
        for name in names:
            kernel = getattr(module, name)
            setattr(module, name, Only(getattr(kernel, "kernel", kernel), programs))
    offsets = torch.tensor([0, total - length, total], dtype=torch.int32)
    tiles = torch.tensor([[1, tile, total - length, length] for tile in (0, 1)], dtype=torch.int32)
    qkv, grad = far(total, 3, heads, dim), torch.empty(total, heads, dim)
    qkv[-length:], grad[-length:] = torch.randn(length, 3, heads, dim), torch.randn(length, heads, dim)
    rest: Any = (offsets, tiles, length, 0, None, False, None)
    out, lse = attention_forward.launch_forward(qkv, *rest)
    leaf = qkv[-length:].clone().requires_grad_()
    expected = attention.varlen_attention_oracle(leaf, torch.tensor([0, length], dtype=torch.int32))[0]
    same(out[-length:], expected)
    found = attention_backward.launch_backward(grad, qkv, out, lse, *rest)
    same(found[-length:], torch.autograd.grad(expected, leaf, grad[-length:])[0])


def check_rows() -> None:
    rows, size, last = 600_000, 4096, 64
    config = RowConfig(block_m=last, num_warps=4, max_programs=rows // last, block_n=1024)
    # A backward pass leaves sums for each row of a block, which are all added up.
    single = RowConfig(block_m=1, num_warps=4, max_programs=rows // last)
    for module, name, one, programs in (
        (layer_norm, "layer_norm", single, range(-last, 0)),
        (activation, "activation", config, [-1]),
        (embedding, "embedding", single, range(-last, 0)),
    ):
        module.row_config = lambda *_, one=one: one  # type: ignore[attr-defined]
        setattr(module, f"_{name}_fwd_kernel", Only(getattr(module, f"_{name}_fwd_kernel"), programs))
        setattr(module, f"_{name}_bwd_kernel", Only(getattr(module, f"_{name}_bwd_kernel"), [-1]))
    x, grad = far(rows, size), far(rows, size)
    x[-last:], grad[-last:] = torch.randn(last, size), torch.randn(last, size)
    weight, bias = torch.randn(size), torch.randn(size)
    leaf = x[-last:].clone().requires_grad_()

    y, z, mean, rstd = layer_norm.dropout_add_layer_norm.forward(x, x, weight, bias, None, 1e-5, None, True)
    expected = layer_norm.dropout_add_layer_norm_oracle(leaf, leaf, weight, bias, None, 1e-5)
    same(y[-last:], expected)
    found = layer_norm.dropout_add_layer_norm_backward.forward(
        grad, z, mean, rstd, weight, torch.float32, torch.float32, False, None
    )[1]
    same(2 * found[-last:], torch.autograd.grad(expected, leaf, grad[-last:])[0])

    y = activation.bias_activation_dropout.forward(x, bias, "gelu", None)
    expected = activation.bias_activation_dropout_oracle(leaf, bias)
    same(y[-last:, -1024:], expected[:, -1024:])
    found, _, again = activation.bias_activation_dropout_backward.forward(grad, x, bias, "gelu", None, True)
    same(again[-last:, -1024:], expected[:, -1024:])
    same(found[-last:, -1024:], torch.autograd.grad(expected, leaf, grad[-last:])[0][:, -1024:])

    linear._multiprocessors = lambda _: rows  # one a tile
    linear._linear_fwd_kernel = Only(linear._linear_fwd_kernel, [-1])
    square = torch.randn(size, size) / size**0.5
    y, product = linear.launch_linear(x, square, bias, save=True)
    expected = x[-last:] @ square.T
    same(product[-last:, -64:], expected[:, -64:])
    same(y[-last:, -64:], expected[:, -64:] + bias[-64:])

    linear_cross_entropy._cross_entropy_fwd_kernel = Only(linear_cross_entropy._cross_entropy_fwd_kernel, [-1])
    logits, targets, losses = far(rows, size), torch.zeros(rows, dtype=torch.int64), torch.empty(rows)
    logits[-1:] = x[-1:]
    expected, grad_of_last = linear_cross_entropy.compare_oracle(x[-1:], targets[-1:], 1.0)
    linear_cross_entropy.compare(logits, targets, losses, 1.0)
    same(losses[-1:], expected)
    same(logits[-1:], grad_of_last)

    ids = torch.arange(rows)
    positions = torch.randn(3, size)
    position_ids = torch.zeros(rows, dtype=torch.int64)
    rest: Any = (x, position_ids, positions, weight)
    y, mean, rstd = embedding.embedding_layer_norm.forward(ids, *rest, bias, 1e-5, -1, -1, None, True)
    expected = embedding.embedding_layer_norm_oracle(leaf, positions[:1], weight, bias, 1e-5)
    same(y[-last:], expected)
    for name in ("_segment_sum_chunks_kernel", "_segment_sum_merge_kernel"):
        setattr(segment_sum, name, Only(getattr(segment_sum, name), [-1]))
    chunk = segment_sum.CHUNK
    few = torch.cat((torch.zeros(rows - chunk, dtype=torch.int64), torch.arange(1, chunk + 1)))
    table = segment_sum.segment_sum(grad, few, chunk + 1, -1, torch.float32)
    same(table[1:], grad[-chunk:])


if __name__ == "__main__":
    check_attention(length=30, forward=range(6, 12), backward=range(12, 24))  # two heads a program, one
    check_attention(length=100, forward=range(24), backward=range(24))
    check_rows()
    print("right")

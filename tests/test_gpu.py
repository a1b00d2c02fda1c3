"""What only a GPU can show: real sizes, a million tokens, no recompilation, no synchronisation, graphs, full memory."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from closeness import assert_right
from torch import Tensor

pytest.importorskip("triton")

from erniem_fast import ErnieMConfig, ErnieMModel, PackedBatch, ops
from erniem_fast.kernels import (
    activation,
    attention,
    attention_backward,
    attention_forward,
    attention_tiles,
    embedding,
    layer_norm,
    segment_sum,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")
KERNELS = [
    attention_forward._forward, attention_backward._backward_in_one, attention_backward._backward_rows,
    attention_backward._backward_columns, attention_tiles._scatter_tiles, layer_norm._forward, layer_norm._backward,
    activation._forward, activation._backward, embedding._forward, embedding._backward, segment_sum._sum_chunks,
    segment_sum._sum_pieces,
]  # fmt: skip
MIXES = {
    "16": [16] * 256,
    "32": [32] * 128,
    "64": [64] * 64,
    "128": [128] * 32,
    "256": [256] * 16,
    "512": [512] * 8,
    "pairs": [17, 45, 33, 90, 28, 61, 12, 150, 40, 52] * 9,
    "documents": [512, 300, 211, 180, 75, 400, 260, 320] * 2,
}


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths], device=CUDA).cumsum(0).int()


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_attention_at_real_sizes(mix: str, dtype: torch.dtype, p: float, head_dim: int) -> None:
    lengths, heads = MIXES[mix], 768 // head_dim
    cu_seqlens, seed = offsets(lengths), ops.draw_seed(CUDA)

    def kernel(qkv: Tensor) -> Tensor:
        return ops.varlen_attention(qkv, cu_seqlens, max(lengths), dropout_p=p, seed=seed, site=5, backend="triton")

    def oracle(qkv: Tensor) -> Tensor:
        return attention.varlen_attention_oracle(qkv, cu_seqlens, None, p, seed, 5)[0]

    qkv = torch.randn(sum(lengths), 3, heads, head_dim, device=CUDA).to(dtype)
    assert_right(kernel, oracle, [qkv], (sum(lengths), heads, head_dim))


def test_prefix_lens_at_real_sizes() -> None:
    lengths = MIXES["documents"]
    cu_seqlens = offsets(lengths)
    prefixes = torch.tensor([length // 3 for length in lengths], dtype=torch.int32, device=CUDA)
    qkv = torch.randn(sum(lengths), 3, 12, 64, device=CUDA).bfloat16()
    assert_right(
        lambda qkv: ops.varlen_attention(qkv, cu_seqlens, 512, prefix_lens=prefixes, backend="triton"),
        lambda qkv: attention.varlen_attention_oracle(qkv, cu_seqlens, prefixes)[0],
        [qkv],
        (sum(lengths), 12, 64),
    )


def test_dropout_is_fair() -> None:
    """Rates, and the correlation of neighbours in every direction, within 5 standard deviations."""
    seed, p, length, heads = ops.draw_seed(CUDA), 0.1, 64, 12
    sequences = 2000
    qkv = torch.zeros(sequences * length, 3, heads, length, device=CUDA)
    qkv[:, 2] = torch.eye(length, device=CUDA).repeat(sequences, 1)[:, None]
    cu_seqlens = torch.arange(sequences + 1, device=CUDA, dtype=torch.int32) * length
    out = ops.varlen_attention(qkv, cu_seqlens, length, dropout_p=p, seed=seed, backend="triton")
    scores = (out != 0).double().view(sequences, length, heads, length).transpose(1, 2)
    rows = ops.bias_gelu_dropout(
        torch.full((20_000, 3072), 30.0, device=CUDA), dropout_p=p, seed=seed, backend="triton"
    )
    for kept in (scores, (rows != 0).double()):
        deviation = math.sqrt(p * (1 - p) / kept.numel())
        assert abs(kept.mean() - (1 - p)) < 5 * deviation + 1 / 65536
        centred = kept - kept.mean()
        for dim in range(kept.dim()):
            for step in (1, 2, 8):
                one, two = (
                    centred.narrow(dim, 0, kept.shape[dim] - step),
                    centred.narrow(dim, step, kept.shape[dim] - step),
                )
                correlation = (one * two).mean() / (p * (1 - p))
                assert abs(correlation) < 5 / math.sqrt(one.numel())


def test_a_million_tokens() -> None:
    """More than 2**31 elements: the last sequences are right, forward and backward."""
    total = 1_000_000
    lengths = [500] * (total // 500)
    cu_seqlens = offsets(lengths)
    qkv = torch.randn(total, 3, 12, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    assert qkv.numel() > 2**31
    out = ops.varlen_attention(qkv, cu_seqlens, 500, backend="triton")
    grad = torch.randn_like(out)
    (found,) = torch.autograd.grad(out, qkv, grad)
    for first in (0, total - 1000):
        rows = slice(first, first + 1000)
        leaf = qkv.detach()[rows].double().requires_grad_()
        expected = attention.varlen_attention_oracle(leaf, offsets([500, 500]))[0]
        (wanted,) = torch.autograd.grad(expected, leaf, grad[rows].double())
        torch.testing.assert_close(out[rows].double(), expected, rtol=0, atol=0.02)
        torch.testing.assert_close(found[rows].double(), wanted, rtol=0, atol=0.05)
    del qkv, out, grad, found
    x = torch.randn(total, 3072, device=CUDA, dtype=torch.bfloat16)
    y = ops.bias_gelu_dropout(x, backend="triton")
    torch.testing.assert_close(y[-1000:].float(), torch.nn.functional.gelu(x[-1000:].float()), rtol=0.01, atol=0.01)


def make(dtype: torch.dtype, **changes: Any) -> ErnieMModel:
    config = ErnieMConfig(vocab_size=1000, num_hidden_layers=2, **changes)
    return ErnieMModel(config).to(CUDA, dtype)


def random_batch(total: int) -> PackedBatch:
    lengths = []
    while sum(lengths) < total:
        lengths.append(min(int(torch.randint(1, 200, ())), total - sum(lengths)))
    return PackedBatch.from_sequences([torch.randint(2, 1000, (length,)) for length in lengths], CUDA)


def compiled_kernels() -> int:
    return sum(len(cache[0]) for kernel in KERNELS for cache in kernel.device_caches.values())


def test_no_total_compiles_again() -> None:
    model = make(torch.bfloat16).train()
    for total in (1000, 1024):
        model(random_batch(total)).last_hidden_state.sum().backward()
    before = compiled_kernels()
    for total in (201, 777, 1040, 4096, 5000):
        model(random_batch(total)).last_hidden_state.sum().backward()
    assert compiled_kernels() == before


@pytest.fixture
def _no_sync() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_packed_input_never_waits(request: pytest.FixtureRequest) -> None:
    model = make(torch.bfloat16).train()
    batch = random_batch(3000)
    model(batch).last_hidden_state.sum().backward()
    request.getfixturevalue("_no_sync")
    model(batch).last_hidden_state.sum().backward()


def test_a_graph_is_bitwise_equal() -> None:
    model = make(torch.bfloat16).eval()
    batch, other = random_batch(3000), random_batch(3000)
    with torch.no_grad():
        for _ in range(3):
            model(batch)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = model(batch).last_hidden_state
        assert batch.input_ids is not None
        assert other.input_ids is not None
        batch.input_ids.copy_(other.input_ids)
        expected = model(batch).last_hidden_state
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, expected)


def test_twenty_training_steps_are_bitwise_equal() -> None:
    model = make(torch.bfloat16).train()
    batch = random_batch(4000)

    def step() -> list[Tensor]:
        torch.manual_seed(1)
        model.zero_grad(set_to_none=True)
        rows = model(batch).last_hidden_state
        rows.float().square().sum().backward()
        return [rows.detach(), *[p.grad for p in model.parameters() if p.grad is not None]]

    first = [tensor.clone() for tensor in step()]
    for _ in range(19):
        assert all(torch.equal(one, two) for one, two in zip(first, step(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_model_at_real_sizes(dtype: torch.dtype) -> None:
    """At most twice as wrong as plain PyTorch in the same dtype; dropout included, since masks are shared."""
    model = make(torch.float64).train()
    batch = random_batch(2000)
    errors = {}
    for weights, backend in ((torch.float64, "torch"), (dtype, "torch"), (dtype, "triton")):
        model.to(weights)
        model.backend = backend
        torch.manual_seed(1)
        errors[weights, backend] = model(batch).last_hidden_state.detach().double()
    expected = errors[torch.float64, "torch"]
    plain, kernels = ((errors[dtype, backend] - expected).abs().max() for backend in ("torch", "triton"))
    assert kernels <= 2 * plain


def test_full_memory_is_a_clean_error() -> None:
    model = make(torch.bfloat16).eval()
    small = random_batch(500)
    with torch.no_grad():
        expected = model(small).last_hidden_state.clone()
        whole = torch.cuda.mem_get_info()[1]
        torch.cuda.empty_cache()
        held = torch.cuda.memory_reserved()
        torch.cuda.set_per_process_memory_fraction((held + 2**30) / whole)
        try:
            with pytest.raises(torch.OutOfMemoryError):
                model(random_batch(2_000_000))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert torch.equal(model(small).last_hidden_state, expected)


def test_inductor_serves_all_totals() -> None:
    model = make(torch.bfloat16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    torch._dynamo.reset()
    fast = torch.compile(model, fullgraph=True, dynamic=True)
    for total in (900, 1500, 3000):
        batch = random_batch(total)
        expected = model(batch).last_hidden_state
        found = fast(batch).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
        found.sum().backward()
    torch._dynamo.reset()

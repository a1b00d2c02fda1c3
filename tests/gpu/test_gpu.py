"""Tests that need a GPU: real sizes, a million tokens, no recompilation, no synchronisation, graphs, full memory."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.closeness import assert_right
from helpers.row_cases import dropout_of
from torch import Tensor

pytest.importorskip("triton")

from erniem_fast import ErnieMConfig, ErnieMModel, GraphedEncoder, PackedBatch, batch_invariant, ops
from erniem_fast.inference.graphs import in_bucket
from erniem_fast.kernels import (
    activation,
    attention,
    attention_backward,
    attention_forward,
    attention_tiles,
    embedding,
    layer_norm,
    linear,
    linear_cross_entropy,
    segment_sum,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")
KERNELS = [
    attention_forward._attn_fwd_kernel, attention_backward._attn_bwd_single_tile_kernel,
    attention_backward._attn_bwd_dq_kernel, attention_backward._attn_bwd_dkdv_kernel,
    attention_tiles._attn_tile_sums_kernel, attention_tiles._attn_tiles_kernel,
    layer_norm._layer_norm_fwd_kernel, layer_norm._layer_norm_bwd_kernel,
    activation._activation_fwd_kernel, activation._activation_bwd_kernel, embedding._embedding_fwd_kernel,
    embedding._embedding_bwd_kernel, segment_sum._segment_sum_chunks_kernel, segment_sum._segment_sum_merge_kernel,
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
    "documents and titles": [512] * 6 + [20, 64, 65, 33],
}


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths], device=CUDA).cumsum(0).int()


@pytest.mark.parametrize(("act", "p"), [(None, 0.0), ("gelu", 0.0), ("gelu", 0.1), ("relu", 0.1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(1, 768, 2304), (5000, 768, 3072), (4096, 3072, 768), (300, 1024, 3)], ids=str)
def test_linear_at_real_sizes(shape: tuple[int, int, int], dtype: torch.dtype, act: str | None, p: float) -> None:
    rows, size, out = shape
    x = torch.randn(rows, size, device=CUDA).to(dtype)
    weight, bias = (torch.randn(out, size, device=CUDA) / size**0.5).to(dtype), torch.randn(out, device=CUDA).to(dtype)
    dropout = dropout_of(p, CUDA)
    found, product = linear.launch_linear(x, weight, bias, act, dropout, save=True)
    exact = linear.linear_oracle(x.double(), weight.double(), bias.double(), act, dropout)
    plain = linear.linear_oracle(x, weight, bias, act, dropout)
    for one, two, low in zip((found, product), exact, plain, strict=True):
        largest = two.abs().max().item()
        rounding = torch.finfo(dtype).eps / 2 * largest
        most = 1e-5 * largest if dtype == torch.float32 else 2 * (low.double() - two).abs().max().item() + rounding
        assert (one.double() - two).abs().max().item() <= most


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_linear_cross_entropy_at_real_sizes(dtype: torch.dtype) -> None:
    vocab, targets = 250_002, torch.randint(250_002, (600,), device=CUDA)
    targets[3] = -100
    shapes = ((600, 768), (vocab, 768), (vocab,))
    x, weight, bias = ((torch.randn(shape, device=CUDA) / shape[-1] ** 0.25).to(dtype) for shape in shapes)
    assert_right(
        lambda *given: ops.linear_cross_entropy(*given, targets, backend="triton"),
        lambda *given: torch.nn.functional.cross_entropy(
            torch.nn.functional.linear(*given), targets, reduction="sum"
        ),
        [x, weight, bias],
        (),
    )  # fmt: skip


def test_logits_of_more_than_2_31_elements() -> None:
    rows, vocab = 9000, 250_002
    logits = torch.empty(rows, vocab + 46, device=CUDA, dtype=torch.bfloat16).normal_()[:, :vocab]
    assert (rows - 1) * logits.stride(0) > 2**31
    targets, losses = torch.randint(vocab, (rows,), device=CUDA), torch.empty(rows, device=CUDA)
    expected, grad = linear_cross_entropy.compare_oracle(logits[-2:].double(), targets[-2:], 1.0)
    linear_cross_entropy.compare(logits, targets, losses, 1.0)
    torch.testing.assert_close(losses[-2:].double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(logits[-2:].double(), grad, rtol=0.01, atol=1e-8)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_attention_at_real_sizes(mix: str, dtype: torch.dtype, p: float, head_dim: int) -> None:
    lengths, heads = MIXES[mix], 768 // head_dim
    cu_seqlens, dropout = offsets(lengths), dropout_of(p, CUDA, site=5)

    def kernel(qkv: Tensor) -> Tensor:
        return ops.varlen_attention(qkv, cu_seqlens, max(lengths), dropout=dropout, backend="triton")

    def oracle(qkv: Tensor) -> Tensor:
        return attention.varlen_attention_oracle(qkv, cu_seqlens, None, dropout)[0]

    qkv = torch.randn(sum(lengths), 3, heads, head_dim, device=CUDA).to(dtype)
    assert_right(kernel, oracle, [qkv], (sum(lengths), heads, head_dim))


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("mix", MIXES)
def test_prefix_lens_at_real_sizes(mix: str, p: float) -> None:
    lengths = MIXES[mix]
    cu_seqlens = offsets(lengths)
    prefixes = torch.tensor([length // 3 for length in lengths], dtype=torch.int32, device=CUDA)
    rest: Any = {"prefix_lens": prefixes, "dropout": dropout_of(p, CUDA, site=5)}
    qkv = torch.randn(sum(lengths), 3, 12, 64, device=CUDA).bfloat16()
    assert_right(
        lambda qkv: ops.varlen_attention(qkv, cu_seqlens, max(lengths), backend="triton", **rest),
        lambda qkv: attention.varlen_attention_oracle(qkv, cu_seqlens, **rest)[0],
        [qkv],
        (sum(lengths), 12, 64),
    )


def test_dropout_is_fair() -> None:
    """Rates, and the correlation of neighbours in every direction, within 5 standard deviations."""
    p, length, heads, sequences = 0.1, 64, 12, 2000
    dropout = ops.Dropout(p, ops.draw_seed(CUDA), 0)
    qkv = torch.zeros(sequences * length, 3, heads, length, device=CUDA, dtype=torch.bfloat16)
    qkv[:, 2] = torch.eye(length, device=CUDA).repeat(sequences, 1)[:, None]
    cu_seqlens = torch.arange(sequences + 1, device=CUDA, dtype=torch.int32) * length
    out = ops.varlen_attention(qkv, cu_seqlens, length, dropout=dropout, backend="triton")
    scores = (out != 0).double().view(sequences, length, heads, length).transpose(1, 2)
    rows = ops.bias_activation_dropout(torch.full((20_000, 3072), 30.0, device=CUDA), dropout=dropout, backend="triton")
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
    y = ops.bias_activation_dropout(x, backend="triton")
    torch.testing.assert_close(y[-1000:].float(), torch.nn.functional.gelu(x[-1000:].float()), rtol=0.01, atol=0.01)


def make(dtype: torch.dtype, **changes: Any) -> ErnieMModel:
    config = ErnieMConfig(vocab_size=1000, num_hidden_layers=2, **changes)
    return ErnieMModel(config).to(CUDA, dtype)


def random_batch(total: int) -> PackedBatch:
    """The first sequence has 150 tokens, so that batches of any total take the same kernels."""
    lengths, left = [150], total - 150
    while left:
        lengths.append(min(int(torch.randint(1, 200, ())), left))
        left -= lengths[-1]
    return PackedBatch.from_sequences([torch.randint(2, 1000, (length,)) for length in lengths], CUDA)


def compiled_kernels() -> int:
    return sum(len(cache[0]) for kernel in KERNELS for cache in kernel.device_caches.values())


def test_no_total_compiles_again() -> None:
    model = make(torch.bfloat16).train()
    for total in (1000, 1024):
        model(random_batch(total)).last_hidden_state.sum().backward()
    before = compiled_kernels()
    for total in (251, 777, 1040, 4096, 5000):
        model(random_batch(total)).last_hidden_state.sum().backward()
    assert compiled_kernels() == before


@pytest.fixture
def _no_sync() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_packed_input_never_waits(request: pytest.FixtureRequest) -> None:
    model = make(torch.bfloat16).train()
    batch = random_batch(10_000)  # long enough for the sort that a table's gradient takes
    model(batch).last_hidden_state.sum().backward()
    request.getfixturevalue("_no_sync")
    model(batch).last_hidden_state.sum().backward()


def of_lengths(*lengths: int) -> PackedBatch:
    return PackedBatch.from_sequences([torch.randint(2, 1000, (length,)) for length in lengths], CUDA)


def test_graphs_serve_their_buckets_bitwise() -> None:
    model = make(torch.bfloat16).eval()
    encoder = GraphedEncoder(model, tokens=(64, 512, 1024), sequences=(4, 32), max_graphs=2)
    batches = [
        of_lengths(*lengths) for lengths in ((300, 20, 111), (5, 9), (64, 1, 0, 400, 33, 200), (200, 180), (64,))
    ]
    for batch in [*batches, *batches[::-1], of_lengths(500, 500, 500)]:  # the last beyond the buckets
        found = encoder(batch)
        with torch.no_grad():
            expected = model(batch, return_packed=True)
            sizes = {"tokens": 1024, "sequences": 32}
            for name, own in (("tokens", batch.total_tokens), ("sequences", batch.num_sequences)):
                sizes[name] = min((size for size in getattr(encoder, name) if size >= own), default=0)
            if all(sizes.values()):
                padded = model(in_bucket(batch, **sizes, max_tokens=512), return_packed=True)
                assert torch.equal(found.last_hidden_state, padded.last_hidden_state[: batch.total_tokens])
                assert torch.equal(found.pooler_output, padded.pooler_output[: batch.num_sequences])
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0.05, atol=0.05)
    assert len(encoder._graphs) == 2


@torch.inference_mode()
def test_pooled_output_alone_is_captured() -> None:
    """A capture fails where the host waits."""
    model = make(torch.bfloat16).eval()
    batch = of_lengths(300, 20, 0, 111)
    expected, eager = model(batch).pooler_output, model(batch, pooled_only=True).pooler_output
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = model(batch, pooled_only=True).pooler_output
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, eager)
    torch.testing.assert_close(captured, expected, rtol=0.05, atol=0.05)


def test_graphs_share_their_memory() -> None:
    model = make(torch.bfloat16).eval()
    encoder = GraphedEncoder(model)
    encoder(of_lengths(*[500] * 16))
    largest = encoder.reserved_bytes
    assert largest > 0
    for count in (1, 2, 3, 5, 8, 11):
        encoder(of_lengths(*[500] * count))
    assert len(encoder._graphs) == 7
    assert encoder.reserved_bytes <= 1.5 * largest + 64 * 2**20


def test_a_graph_follows_its_weights() -> None:
    model = make(torch.bfloat16).eval()
    encoder, batch = GraphedEncoder(model), of_lengths(40, 30)
    before = encoder(batch).last_hidden_state
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    after = encoder(batch).last_hidden_state
    assert not torch.equal(before, after)
    with torch.no_grad():
        torch.testing.assert_close(after, model(batch, return_packed=True).last_hidden_state, rtol=0.05, atol=0.05)


def test_a_graph_outlives_autocast() -> None:
    model, batch = make(torch.float32).eval(), of_lengths(40, 30)
    encoder = GraphedEncoder(model)
    with torch.autocast("cuda", torch.bfloat16):
        expected = encoder(batch).last_hidden_state
    filled = [torch.full((768, 768), torch.nan, device=CUDA, dtype=torch.bfloat16) for _ in range(500)]
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(encoder(batch).last_hidden_state, expected)
    assert len(encoder._graphs) == 1
    assert len(filled) == 500


def test_graphs_refuse_what_they_would_leave_out() -> None:
    model = make(torch.bfloat16).eval()
    encoder, batch = GraphedEncoder(model), of_lengths(40, 30)
    with pytest.raises(ValueError, match="prefix_lens must be None"):
        encoder(replace(batch, prefix_lens=torch.tensor([3, 4], dtype=torch.int32, device=CUDA)))
    with pytest.raises(ValueError, match=r"batch must be on cuda:0, .* got cpu"):
        encoder(batch.to("cpu"))
    hook = model.encoder.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="no forward hooks"):
        encoder(batch)
    hook.remove()
    model.train()
    with pytest.raises(ValueError, match="eval mode"):
        encoder(batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_batches_change_no_bit(dtype: torch.dtype) -> None:
    model = make(dtype).eval()
    lengths = [1, 500, 33, 64, 65, 128, 7, 300, 16] * 20
    rows = [torch.randint(2, 1000, (length,)) for length in lengths]
    encoder = GraphedEncoder(model)
    with torch.inference_mode(), batch_invariant():
        batch = PackedBatch.from_sequences(rows, CUDA)
        together = model(batch, return_packed=True)
        starts = batch.cu_seqlens.tolist()
        for place, row in enumerate(rows[:9]):
            own = PackedBatch.from_sequences([row], CUDA)
            for alone in (model(own, return_packed=True), encoder(own)):
                assert torch.equal(
                    alone.last_hidden_state, together.last_hidden_state[starts[place] : starts[place + 1]]
                )
                assert torch.equal(alone.pooler_output[0], together.pooler_output[place])


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
    found: dict[Any, dict[str, Tensor]] = {}
    for weights, backend in ((torch.float64, "torch"), (dtype, "torch"), (dtype, "triton")):
        model.to(weights)
        model.backend = backend
        model.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        rows = model(batch).last_hidden_state
        (rows.tanh().square().sum() / 100).backward()
        found[weights, backend] = {"rows": rows.detach().double()} | {
            name: parameter.grad.double() for name, parameter in model.named_parameters() if parameter.grad is not None
        }
    expected = found[torch.float64, "torch"]
    plain, kernels = (
        {name: (found[dtype, backend][name] - expected[name]).norm() for name in expected}
        for backend in ("torch", "triton")
    )
    assert kernels["rows"] <= 2 * plain["rows"]
    assert sum(kernels.values()) <= 2 * sum(plain.values())


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
        grads = []
        for run in (model, fast):
            model.zero_grad(set_to_none=True)
            rows = run(batch).last_hidden_state
            rows.float().tanh().square().sum().backward()
            grads.append([rows.detach()] + [p.grad for p in model.parameters() if p.grad is not None])
        for eager, found in zip(*grads, strict=True):
            assert (found - eager).float().norm() <= 0.02 * eager.float().norm() + 1e-3
    torch._dynamo.reset()


def test_padded_input_waits_once() -> None:
    model = make(torch.bfloat16).eval()
    ids = torch.randint(2, 1000, (8, 50), device=CUDA)
    mask = (torch.arange(50, device=CUDA) < torch.randint(1, 51, (8, 1), device=CUDA)).long()
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model(input_ids=ids, attention_mask=mask)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in caught if "synchroniz" in str(w.message)]) <= 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
def test_the_device_of_the_tensors_counts() -> None:
    qkv = torch.randn(30, 3, 2, 16, device="cuda:1")
    cu_seqlens = torch.tensor([0, 30], dtype=torch.int32, device="cuda:1")
    found = ops.varlen_attention(qkv, cu_seqlens, 30, backend="triton")
    torch.testing.assert_close(found, attention.varlen_attention_oracle(qkv, cu_seqlens)[0], rtol=1e-5, atol=1e-5)

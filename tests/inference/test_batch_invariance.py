"""In `batch_invariant()` a sequence's result is bitwise the same alone, in any batch, in any order."""

import copy
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

import itertools

from helpers.closeness import error

from erniem_fast import PackedBatch, batch_invariant, ops
from erniem_fast.ops import is_batch_invariant

Pair = tuple[Any, Any]
LENGTHS = [5, 130, 64, 1, 0, 20]
SIZES: dict[str, Any] = {
    "max_position_embeddings": 202, "hidden_size": 32, "intermediate_size": 80, "num_attention_heads": 2
}  # fmt: skip


def sequences(lengths: list[int], vocab_size: int) -> list[Tensor]:
    return [torch.randint(2, vocab_size, (length,)) for length in lengths]


@pytest.fixture
def make(make_pair: Callable[..., Pair], device: torch.device) -> Callable[..., Any]:
    def make(name: str = "ErnieMModel", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
        return make_pair(name, dtype, **(SIZES | changes))[1].to(device)

    return make


@torch.inference_mode()
def encode(model: Any, rows: list[Tensor], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Hidden states and pooled output of each sequence."""
    batch = PackedBatch.from_sequences(rows, device)
    outputs = model(batch, return_packed=True)
    offsets = batch.cu_seqlens.tolist()
    states = [outputs.last_hidden_state[start:end] for start, end in itertools.pairwise(offsets)]
    return list(zip(states, outputs.pooler_output, strict=True))


@pytest.mark.usefixtures("_one_order")
@pytest.mark.parametrize(
    ("dtype", "lengths"),
    [
        (torch.float32, [5, 17, 1, 0]),
        pytest.param(torch.float32, LENGTHS, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, LENGTHS, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_sequence_is_the_same_in_any_batch(
    dtype: torch.dtype, lengths: list[int], make: Callable[..., Any], device: torch.device
) -> None:
    model = make(dtype=dtype)
    exact, plain = copy.deepcopy(model).double(), copy.deepcopy(model)
    exact.backend = plain.backend = "torch"
    rows = sequences(lengths, model.config.vocab_size)
    order = random.Random(torch.initial_seed()).sample(range(len(rows)), len(rows))
    with batch_invariant():
        together = encode(model, rows, device)
        shuffled = encode(model, [rows[place] for place in order], device)
        few = encode(model, rows[2:4], device)
        alone = [encode(model, [row], device)[0] for row in rows]
    for place, (states, pooled) in enumerate(alone):
        found = [together[place], shuffled[order.index(place)]] + ([few[place - 2]] if place in (2, 3) else [])
        for other_states, other_pooled in found:
            assert torch.equal(states, other_states)
            assert torch.equal(pooled, other_pooled)
    expected, low = (torch.cat([states for states, _ in encode(other, rows, device)]) for other in (exact, plain))
    found = torch.cat([states for states, _ in together])
    if dtype == torch.float32:
        assert error(found, expected) <= 1e-5
    else:
        assert (found - expected).norm() <= 2 * (low - expected).norm()


@pytest.mark.slow
@pytest.mark.usefixtures("_one_order")
def test_attention_alone_and_among_others(device: torch.device) -> None:
    lengths = [200, 3, 64, 16, 70, 33]
    offsets = torch.tensor([0, *lengths], device=device).cumsum(0).int()
    for dtype, head_dim in ((torch.bfloat16, 64), (torch.float32, 64)):
        qkv = torch.randn(sum(lengths), 3, 2, head_dim, device=device).to(dtype)
        prefixes = torch.tensor([40, 0, 64, 7, 70, 12], dtype=torch.int32, device=device)
        for given in (None, prefixes):
            with batch_invariant():
                together = ops.varlen_attention(qkv, offsets, max(lengths), prefix_lens=given)
                for place, length in enumerate(lengths):
                    part = slice(offsets[place], offsets[place + 1])
                    own = torch.tensor([0, length], dtype=torch.int32, device=device)
                    prefix = None if given is None else given[place : place + 1]
                    alone = ops.varlen_attention(qkv[part], own, length, prefix_lens=prefix)
                    assert torch.equal(alone, together[part])


@pytest.mark.slow
@pytest.mark.usefixtures("_one_order")
def test_heads_and_padded_input(make: Callable[..., Any], device: torch.device) -> None:
    model = make("ErnieMForSequenceClassification", num_labels=3)
    rows = [row for row in sequences(LENGTHS, model.config.vocab_size) if len(row)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1).to(device)
    mask = (torch.arange(padded.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]).long().to(device)
    with torch.inference_mode(), batch_invariant():
        together = model(padded, attention_mask=mask).logits
        for row, logits in zip(rows, together, strict=True):
            assert torch.equal(model(row[None].to(device)).logits[0], logits)


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def test_every_linear_layer_takes_the_kernel(make: Callable[..., Any], device: torch.device) -> None:
    """Adapters, too."""
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["q_proj", "linear1", "linear2"], r=8, init_lora_weights=False)
    model = peft.get_peft_model(make("ErnieMForTokenClassification"), lora).eval()
    rows = sequences([9, 4], 97)
    ids = PackedBatch.from_sequences(rows, device)
    with torch.inference_mode():
        expected = model(ids).logits
        with batch_invariant(), Recorder() as recorder:
            found = model(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    names = {name.removesuffix(".default") for name in recorder.names}
    assert {"erniem_fast.linear", "erniem_fast.varlen_attention"} <= names
    assert not names & {f"aten.{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "linear")}


def test_only_the_thread_that_enters_it(make: Callable[..., Any]) -> None:
    seen = []
    with batch_invariant():
        assert is_batch_invariant()
        thread = threading.Thread(target=lambda: seen.append(is_batch_invariant()))
        thread.start()
        thread.join()
    assert seen == [False]
    assert not is_batch_invariant()


def test_what_cannot_be_had_is_refused(make: Callable[..., Any], device: torch.device) -> None:
    model = make()
    ids = torch.randint(2, 97, (2, 7), device=device)
    with torch.inference_mode(), batch_invariant():
        with pytest.raises(ValueError, match="linear layers and the fused attention only, got a call of matmul"):
            model(ids, output_attentions=True)
        model.backend = "torch"
        with pytest.raises(ValueError, match="backend must be 'auto' or 'triton'"):
            model(ids)
        model.backend = "auto"
        with pytest.raises(ValueError, match=r"multiple of 4 in torch.float32, got torch.float32 \(3, 6\)"):
            F.linear(torch.randn(2, 6, device=device), torch.randn(3, 6, device=device))
        with pytest.raises(ValueError, match=r"float32, bfloat16 or float16, got torch\.float64"):
            model.double()(ids)
        rows = torch.randn(4, 8, device=device)
        for product in (rows.__matmul__, rows.addmm, lambda other: torch.tensordot(rows, other, 1), rows.mv):
            operands = (rows.T, rows) if product == rows.addmm else (rows.T,)
            with pytest.raises(ValueError, match="linear layers and the fused attention only"):
                product(*operands)
        assert F.linear(rows[0], rows).shape == (4,)
        assert F.linear(rows.view(2, 2, 8), rows).shape == (2, 2, 4)
        offsets = torch.tensor([0, 4], dtype=torch.int32, device=device)
        with pytest.raises(ValueError, match="head_dim of at most 128"):
            ops.varlen_attention(torch.randn(4, 3, 1, 136, device=device), offsets, 4)
    with batch_invariant(), pytest.raises(ValueError, match=r"use torch.inference_mode\(\) or torch.no_grad\(\)"):
        make()(ids)


def test_a_plan_keeps_the_mode_in_which_it_was_made(device: torch.device) -> None:
    qkv, offsets = torch.randn(200, 3, 1, 16, device=device), torch.tensor([0, 200], dtype=torch.int32, device=device)
    sizes = {"num_heads": 1, "head_dim": 16, "backend": "triton"}
    plan = ops.attention_plan(offsets, 200, 200, **sizes)
    with batch_invariant():
        own = ops.attention_plan(offsets, 200, 200, **sizes)
        found = ops.varlen_attention(qkv, offsets, 200, plan=own)
        with pytest.raises(ValueError, match=r"plan must be made in batch_invariant\(\) to be used there"):
            ops.varlen_attention(qkv, offsets, 200, plan=plan)
        assert torch.equal(ops.varlen_attention(qkv, offsets, 200), found)
    assert torch.equal(ops.varlen_attention(qkv, offsets, 200, plan=own), found)
    torch.testing.assert_close(found, ops.varlen_attention(qkv, offsets, 200, plan=plan))


@pytest.mark.slow
def test_autocast(make: Callable[..., Any], device: torch.device) -> None:
    model, rows = make(), sequences([9, 70], 97)
    with torch.autocast(device.type, torch.bfloat16):
        expected = encode(model, rows, device)
        with batch_invariant():
            found = encode(model, rows, device)
    for one, two in zip(found, expected, strict=True):
        assert one[0].dtype == two[0].dtype
        torch.testing.assert_close(one[0], two[0], rtol=0.1, atol=0.1)


@pytest.mark.slow
def test_a_compiled_function_that_enters_the_mode(make: Callable[..., Any], device: torch.device) -> None:
    """The mode is entered outside of the compiled graphs, or the function is refused."""
    model = make(num_hidden_layers=1)
    batch = PackedBatch.from_sequences(sequences([3, 70], 97), device)

    def encode() -> Tensor:
        with batch_invariant():
            return model(batch, return_packed=True).last_hidden_state

    with torch.inference_mode():
        expected = encode()
        torch._dynamo.reset()
        assert torch.equal(torch.compile(encode, backend="eager")(), expected)
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match="Observed exception"):
            torch.compile(encode, backend="eager", fullgraph=True)()
        torch._dynamo.reset()
    assert not is_batch_invariant()

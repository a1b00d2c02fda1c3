"""A padding-free model under torch.compile, and in several threads at once."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers.families import FAMILIES, NO_DROPOUT, assert_close, assert_same_gradients, batch, gradients, make
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from erniem_fast.packed import SWAPS, PackedEncoder
from erniem_fast.packed_heads import PackedHead, PackedMaskedLM

ROBERTA_KIND = ("roberta", "xlm-roberta", "camembert", "data2vec")
BATCHES = [(7, 3, 9, 1), (5, 12), (2, 2, 2, 2, 2), (20, 1, 8), (6, 6, 6, 2, 9), (11, 3, 4)]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def flattened(family: str, lengths: tuple[int, ...]) -> dict[str, Any]:
    """As DataCollatorWithFlattening gives it."""
    first = 2 if family in ROBERTA_KIND else 0
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return {
        "input_ids": torch.randint(3, 60, (1, sum(lengths))),
        "position_ids": torch.cat([torch.arange(first, first + length) for length in lengths])[None],
        "cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": max(lengths), "max_length_k": max(lengths),
    }  # fmt: skip


def loss_of(output: Any) -> Tensor:
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state.sin().sum() + (0 if pooled is None else pooled.sum())


def test_inference() -> None:
    _, fast = make("bert", num_hidden_layers=1)
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    with torch.no_grad():
        inputs = flattened("bert", BATCHES[0])
        assert_close(compiled(**inputs).last_hidden_state, fast(**inputs).last_hidden_state)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["xlm-roberta", "xlm"])
def test_one_graph_serves_all_batches(family: str) -> None:
    """Forward and backward are eager's; few graphs for all totals."""
    _, fast = make(family, num_hidden_layers=1, **NO_DROPOUT)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fast, fullgraph=True, backend=counter)
    for lengths in BATCHES:
        inputs = flattened(family, lengths)
        found, expected = compiled(**inputs), fast(**inputs)
        assert_close(found.last_hidden_state, expected.last_hidden_state)
        loss_of(found).backward()
        grads = gradients(fast)
        loss_of(expected).backward()
        assert_same_gradients(grads, gradients(fast))
    assert 1 <= counter.frame_count <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "head", "backend"),
    [
        ("xlm-roberta", "ForSequenceClassification", "inductor"),
        ("bert", "ForMaskedLM", "aot_eager"),
        ("xlm", "ForSequenceClassification", "aot_eager"),
    ],
)
def test_heads(family: str, head: str, backend: str) -> None:
    _, fast = make(family, head, torch.float32, num_hidden_layers=1)
    compiled = torch.compile(fast, fullgraph=True, backend=backend)
    with torch.no_grad():
        for lengths in BATCHES[:3]:
            inputs = flattened(family, lengths)
            assert_close(compiled(**inputs).logits, fast(**inputs).logits, 1e-5)


def test_each_class_has_code_of_its_own() -> None:
    """The compiler gives up on code that it has compiled eight times, as it would on several models in one process."""
    make("bert")  # which fills the table
    forwards = [cls.forward for cls in SWAPS.values() if issubclass(cls, PackedEncoder | PackedHead | PackedMaskedLM)]
    assert len(forwards) > 40
    assert len({id(forward.__code__) for forward in forwards}) == len(forwards)


@pytest.mark.slow
def test_a_compiled_padded_model() -> None:
    """Its graph breaks where padding is counted."""
    family = "xlm-roberta"
    _, fast = make(family)
    compiled = torch.compile(fast, backend="aot_eager")
    with torch.no_grad():
        for padding in ("right", "left", "none"):
            inputs = batch(family, padding)
            assert_close(compiled(**inputs).last_hidden_state, fast(**inputs).last_hidden_state)


@pytest.mark.parametrize(
    "family", ["roberta", *(pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES if n != "roberta")]
)
def test_threads(family: str) -> None:
    """A model serves several at once."""
    _, fast = make(family)
    batches = [batch(family, padding) for padding in ("right", "left", "holes", "none") * 4]

    def run(inputs: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return fast(**inputs).last_hidden_state

    expected = [run(inputs) for inputs in batches]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(run, batches), expected, strict=True):
            assert torch.equal(one, other)

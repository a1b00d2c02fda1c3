"""Encoders of other families in what serves: vectors, graphs, joined projections, batch invariance."""

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, BertModel

from erniem_fast import GraphedEncoder, PackedBatch, batch_invariant, join_projections, padding_free
from erniem_fast.fusion import as_one
from erniem_fast.inference.embedding import Embedding
from erniem_fast.inference.graphs import Captured, in_bucket
from erniem_fast.inference.runner import Runner
from erniem_fast.inference.settings import SentenceSettings
from erniem_fast.inference.texts import TextTokens
from erniem_fast.inference.tokens import Row

VOCABULARY, MAX_TOKENS = 97, 64
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 80}
KINDS: dict[str, dict[str, Any]] = {
    "Bert": SIZES | {"max_position_embeddings": MAX_TOKENS},
    "Ernie": SIZES | {"max_position_embeddings": MAX_TOKENS, "use_task_id": True},
    "XLMRoberta": SIZES | {"max_position_embeddings": MAX_TOKENS + 4, "pad_token_id": 3, "type_vocab_size": 1},
    "Electra": SIZES | {"max_position_embeddings": MAX_TOKENS, "embedding_size": 16},
    "DistilBert": {
        "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 80, "max_position_embeddings": MAX_TOKENS,
    },
    "XLM": {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": MAX_TOKENS},
}  # fmt: skip
"""Configuration of a tiny model of each kind; XLM-R's pads with the id 3, so that positions start at 4."""
QUICK = ("Bert", "XLMRoberta")
PARAMETERS = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in KINDS]


def make(name: str, layers: int = 2) -> tuple[Any, Any]:
    """An encoder of transformers and its padding-free copy, in eval mode."""
    config = getattr(transformers, f"{name}Config")(vocab_size=VOCABULARY, **KINDS[name])
    config.num_hidden_layers = layers
    plain = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return plain, padding_free(copy.deepcopy(plain))


def rows_of(lengths: list[int]) -> list[Tensor]:
    return [torch.randint(5, VOCABULARY, (length,)) for length in lengths]


def packed(model: Any, lengths: list[int]) -> PackedBatch:
    return PackedBatch.from_sequences(rows_of(lengths), model.device, model.limits.first_position)


@pytest.mark.parametrize("name", PARAMETERS)
def test_vectors_are_those_of_each_sequence_alone(name: str) -> None:
    plain, fast = make(name)
    sequences = [row.numpy().astype(np.int32) for row in rows_of([5, 0, 30, 1, 5, MAX_TOKENS, 0, 2])]
    for pooling in ("mean", "cls"):
        task = Embedding(Letters(True), Runner(fast, 37), SentenceSettings(), MAX_TOKENS, pooling=pooling)
        out = task.compute([Row(sequence) for sequence in sequences])
        for sequence, vector in zip(sequences, out, strict=True):
            expected = torch.zeros(32)
            if len(sequence):
                with torch.inference_mode():
                    states = plain(torch.tensor(sequence[None], dtype=torch.int64)).last_hidden_state[0]
                expected = states.mean(0) if pooling == "mean" else states[0]
            np.testing.assert_allclose(vector, expected.numpy(), atol=2e-5, rtol=0)


def test_what_is_no_padding_free_encoder_is_refused() -> None:
    config = BertConfig(vocab_size=VOCABULARY, **KINDS["Bert"])
    for model in (BertModel(config), padding_free(BertForSequenceClassification(config))):
        with pytest.raises(TypeError, match=rf"padding_free has changed, got .*{type(model).__name__}"):
            GraphedEncoder(model)


class Letters:
    """A tokenizer of letters, with the special tokens 0 before and, if asked for, 1 behind."""

    def __init__(self, closing: bool) -> None:
        self.closing, self.all_special_ids = closing, [0, 1]

    def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[0, *map(ord, text), *([1] if self.closing else [])] for text in texts]}


def test_cut_texts_keep_what_closes_them() -> None:
    for closing, expected in ((True, [0, *b"abc", 1]), (False, [0, *b"abcd"])):
        tokens = TextTokens(Letters(closing), 5)
        long, short = tokens.tokenize(["abcdefg", "ab"])
        assert (long.ids.tolist(), tokens.truncated) == (expected, 1)
        assert short.ids.tolist() == [0, *b"ab", *([1] if closing else [])]


# Graphs


class Replayed(GraphedEncoder):
    """All but the graph."""

    device_type = "cpu"

    def _capture(self, batch: PackedBatch) -> Captured:
        room = self._room(batch)
        return Captured(SimpleNamespace(replay=lambda: self._run(batch, *room)), batch, *room)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PARAMETERS)
def test_graphs(name: str) -> None:
    """With values read, as on a CPU: the rows that fill a bucket are such as the model takes."""
    _, model = make(name)
    encoder = Replayed(model, tokens=(32, 100), sequences=(2, 4), max_graphs=2)
    for lengths in ([9, 3], [20, 0, 30], [12], [MAX_TOKENS, 36], [60, 60]):
        batch = packed(model, lengths)
        with torch.no_grad():
            expected = model(batch, return_packed=True)
        monkey = pytest.MonkeyPatch()
        with monkey.context() as patched:
            # A bucket's last offset is not its last row.
            patched.setattr(PackedBatch, "_check_values", _check_positions)
            found = encoder(batch)
        for key in ("last_hidden_state", "pooler_output"):
            if expected.get(key) is None:
                assert found.get(key) is None
            else:
                torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-5)


def _check_positions(self: PackedBatch, limits: Any, *_: Any) -> None:
    assert limits.first_position <= int(self.position_ids.min())
    assert int(self.position_ids.max()) <= limits.last_position


def test_rows_of_a_bucket_have_the_first_position() -> None:
    batch = in_bucket(PackedBatch.from_sequences([[5, 6]], first_position=4), 5, 2, 64, 4)
    assert batch.position_ids.tolist() == [4, 5, 4, 4, 4]


# Projections


@pytest.mark.parametrize("name", PARAMETERS)
def test_projections_are_joined(name: str) -> None:
    _, model = make(name)
    state = copy.deepcopy(model.state_dict())
    assert join_projections(model) == 2
    for index in range(2):
        attention = model.parts(index).attention if name == "XLM" else model.layer_stack[index].parts(index).attention
        with torch.no_grad():
            assert as_one([part.weight for part in (attention.query, attention.key, attention.value)]) is not None
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


# Batch invariance


@pytest.mark.slow
@pytest.mark.usefixtures("_one_order")
@pytest.mark.parametrize("name", ["Bert", "XLMRoberta", "Electra", "DistilBert", "XLM"])
def test_a_sequence_is_the_same_in_any_batch(name: str, device: torch.device) -> None:
    pytest.importorskip("triton")
    plain, model = (made.to(device) for made in make(name, layers=1))
    rows = rows_of([5, 17])

    def encode(chosen: list[Tensor]) -> list[Tensor]:
        batch = PackedBatch.from_sequences(chosen, device, model.limits.first_position)
        states = model(batch, return_packed=True).last_hidden_state
        return list(states.split([len(row) for row in chosen]))

    with torch.inference_mode(), batch_invariant():
        together, backwards = encode(rows), encode(rows[::-1])[::-1]
        alone = [encode([row])[0] for row in rows]
    for row, one, *others in zip(rows, alone, together, backwards, strict=True):
        assert all(torch.equal(one, other) for other in others)
        with torch.inference_mode():
            expected = plain(row[None].to(device)).last_hidden_state[0]
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("_one_order")
def test_a_classifier_is_the_same_in_any_batch(device: torch.device) -> None:
    pytest.importorskip("triton")
    config = BertConfig(vocab_size=VOCABULARY, **KINDS["Bert"] | {"num_hidden_layers": 1})
    model = padding_free(BertForSequenceClassification(config)).to(device).eval()
    rows = rows_of([5, 17, 1])
    with torch.inference_mode(), batch_invariant():
        together = model(PackedBatch.from_sequences(rows, device)).logits
        alone = [model(PackedBatch.from_sequences([row], device)).logits for row in rows]
    assert torch.equal(together, torch.cat(alone))

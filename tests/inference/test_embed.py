"""Texts to tokens, tokens to vectors."""

import numpy as np
import pytest
import torch
from helpers.paths import GOLDEN_TOKENIZER

from erniem_fast import ErnieMConfig, ErnieMModel, ErnieMTokenizer, PackedBatch
from erniem_fast.cli.verify import reference_of, sample
from erniem_fast.inference.embed import embed, tokenize
from erniem_fast.inference.pooling import POOLINGS, Pooling

SEP = 2


@pytest.fixture(scope="module")
def tokenizer():
    return ErnieMTokenizer(GOLDEN_TOKENIZER / "sentencepiece.bpe.model", GOLDEN_TOKENIZER / "vocab.txt")


@pytest.fixture
def model():
    config = ErnieMConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        initializer_range=0.2,
    )  # fmt: skip
    return ErnieMModel(config, add_pooling_layer=False).eval()


@pytest.fixture
def sequences():
    rng = np.random.default_rng()
    return [rng.integers(2, 97, size).astype(np.int32) for size in (5, 0, 30, 1, 5, 200, 0, 2)]


def alone(plain, sequence, pooling):
    with torch.inference_mode():
        states = plain(torch.tensor(sequence[None], dtype=torch.int64)).last_hidden_state[0]
    return (states.mean(0) if pooling == "mean" else states[0]).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("batch_tokens", [1, 37, 8192])
def test_vectors_are_those_of_each_sequence_alone(model, sequences, pooling, batch_tokens):
    out = np.zeros((len(sequences), 32), dtype=np.float32)
    seen, plain = [], reference_of(model)
    for indices, vectors in embed(model, sequences, pooling, batch_tokens):
        assert vectors.dtype == np.float32
        out[indices] = vectors
        seen += indices
    assert sorted(seen) == [i for i, sequence in enumerate(sequences) if len(sequence)]
    for sequence, vector in zip(sequences, out, strict=True):
        expected = alone(plain, sequence, pooling) if len(sequence) else np.zeros(32)
        np.testing.assert_allclose(vector, expected, atol=1e-5, rtol=0)


def test_a_pooling_is_a_line_in_the_table(sequences, monkeypatch):
    config = ErnieMConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    model = ErnieMModel(config).eval()
    monkeypatch.setitem(POOLINGS, "pooler", Pooling(lambda batch, hidden, pooled, skip: pooled, "pooler", True))
    plain = reference_of(model)
    for indices, vectors in embed(model, sequences, "pooler", 40):
        for index, vector in zip(indices, vectors, strict=True):
            with torch.inference_mode():
                expected = plain(torch.tensor(sequences[index][None], dtype=torch.int64)).pooler_output[0]
            np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", [(3, 0, 5, 1), (0,), (4, 4)], ids=str)
def test_pooling_on_rows(lengths):
    """Rows behind the last offset, which buckets leave, belong to no sequence."""
    batch = PackedBatch.from_sequences([torch.arange(length) for length in lengths])
    rows = torch.randn(sum(lengths) + 2, 6, dtype=torch.float64)
    expected = [part.mean(0) if len(part) else torch.zeros(6) for part in rows[: sum(lengths)].split(lengths)]
    torch.testing.assert_close(batch.mean(rows).double(), torch.stack(expected).double(), rtol=1e-6, atol=1e-6)
    first = [part[0] if len(part) else torch.zeros(6) for part in rows[: sum(lengths)].split(lengths)]
    assert torch.equal(batch.first(rows), torch.stack(first).double())
    rows = rows.float().requires_grad_()
    batch.mean(rows).sum().backward()
    weights = torch.cat([torch.full((length,), 1 / length) for length in lengths if length] + [torch.zeros(2)])
    torch.testing.assert_close(rows.grad, weights[:, None].expand(-1, 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_vectors(model, sequences, dtype):
    expected = {i: v for indices, vectors in embed(model, sequences) for i, v in zip(indices, vectors, strict=True)}
    for indices, vectors in embed(model.to(dtype), sequences):
        assert vectors.dtype == np.float32
        for index, vector in zip(indices, vectors, strict=True):
            np.testing.assert_allclose(vector, expected[index], atol=0.15)


def test_bad_arguments(model, sequences):
    with pytest.raises(ValueError, match="batch_tokens must be at least 1, got 0"):
        list(embed(model, sequences, batch_tokens=0))
    with pytest.raises(ValueError, match=r"pooling must be one of mean, cls, max, .*, got 'median'"):
        list(embed(model, sequences, pooling="median"))
    with pytest.raises(ValueError, match="eval mode"):
        list(embed(model.train(), sequences))


def test_tokenize_truncates_and_keeps_the_last_token(tokenizer):
    texts = ["Hello.", "", " \t\u3000", "Tom and Mary say they don't want to sing with us anymore."] * 100
    sequences, truncated = tokenize(texts, tokenizer, 8)
    assert truncated == 100
    assert len(sequences) == 400
    assert sequences[0].tolist() == tokenizer(texts[0])["input_ids"]
    assert len(sequences[1]) == len(sequences[2]) == 0
    expected = tokenizer(texts[3], truncation=True, max_length=8)["input_ids"]
    assert sequences[399].tolist() == expected
    assert expected[-1] == SEP


def test_sample_is_as_its_readme_says(tokenizer):
    documents = sample()
    lengths = [len(s) for s in tokenize([text for _, text in documents], tokenizer, 10**6).sequences]
    assert len(documents) == 96
    assert len({language for language, _ in documents}) == 23
    assert (sum(lengths), min(lengths), max(lengths)) == (5935, 3, 502)
    assert sum(16 * max(lengths[i : i + 16]) for i in range(0, 96, 16)) == 34704

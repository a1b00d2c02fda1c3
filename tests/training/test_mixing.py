"""Mixtures of objectives: their shares, the budget of tokens, and the very same batches after a resume."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.processes import wait_until

from erniem_fast.files.errors import InputError
from erniem_fast.training.mixing import Batch, Mixture, Part, ahead, once
from erniem_fast.training.streams import MONOLINGUAL, PARALLEL, Stream, open_readers


def tokenize(texts: list[str], **_: Any) -> dict[str, Any]:
    """An id for each word, which is a number."""
    return {"input_ids": [[int(word) for word in text.split()] for text in texts]}


class Joined:
    """An objective that joins its samples, between zeros, and draws a number."""

    num_cut_samples = 0

    def __call__(self, samples: Any, generator: np.random.Generator) -> dict[str, Any]:
        parts = [part for sample in samples for part in (sample if isinstance(sample, tuple) else (sample,))]
        ids = [token for part in parts for token in (0, *part)]
        return {"input_ids": torch.tensor([ids]), "drawn": generator.integers(2**60)}


@pytest.fixture
def corpora(tmp_path: Path) -> tuple[Path, Path]:
    """600 pairs of 2 to 12 words, and 200 texts of 1 to 40 words, all words different."""
    draw, word = np.random.default_rng(0), iter(range(1, 10**6))
    pairs, texts = tmp_path / "pairs.tsv", tmp_path / "texts.txt"

    def text(most: int) -> str:
        return " ".join(str(next(word)) for _ in range(draw.integers(1, most + 1)))

    pairs.write_text("".join(f"{text(6)}\t{text(6)}\n" for _ in range(600)))
    texts.write_text("".join(f"{text(40)}\n" for _ in range(200)))
    return pairs, texts


def mixture(corpora: tuple[Path, Path], rank: int = 0, world_size: int = 1, **weights: float) -> Mixture:
    parts = []
    for place, (name, weight) in enumerate(weights.items()):
        inputs, columns = (corpora[1], MONOLINGUAL) if name == "texts" else (corpora[0], PARALLEL)
        stream = Stream(open_readers([inputs], columns), seed=place, buffer_size=20, rank=rank, world_size=world_size)
        parts.append(Part(name, Joined(), stream, weight, max_tokens=15, special_tokens=1 + (name != "texts")))
    return Mixture(parts, tokenize, batch_tokens=60, seed=3, rank=rank)


def take(source: Mixture, number: int) -> list[Batch]:
    return list(islice(source, number))


def facts(batch: Batch) -> tuple[Any, ...]:
    return batch.number, batch.objective, batch.inputs["input_ids"].tolist(), batch.inputs["drawn"], batch.places


def test_objectives_come_by_their_weights_and_alike_on_all_ranks(corpora: tuple[Path, Path]) -> None:
    weights = {"texts": 1.0, "pairs": 3.0, "others": 0.0, "more": 2.0}
    batches = [take(mixture(corpora, rank, 2, **weights), 600) for rank in (0, 1)]
    names = [[batch.objective for batch in part] for part in batches]
    assert names[0] == names[1]
    found = Counter(names[0])
    assert set(found) == {"texts", "pairs", "more"}
    for name, count in found.items():
        share = weights[name] / 6
        assert abs(count - 600 * share) < 4 * (600 * share * (1 - share)) ** 0.5
    drawn = {batch.inputs["drawn"] for part in batches for batch in part}
    assert len(drawn) == 1200  # masks of their own


def test_batches_hold_every_sample_once_and_no_more_tokens_than_asked_for(corpora: tuple[Path, Path]) -> None:
    for part in mixture(corpora, texts=1, pairs=1)._lanes.values():
        batches = list(once(part.part, tokenize, batch_tokens=60, seed=3))
        file = corpora[part.part.name == "texts"]
        expected = [int(word) for word in file.read_text().split()]
        words = [token for batch in batches for token in batch.inputs["input_ids"][0].tolist() if token]
        assert sorted(words) == expected
        if part.part.name == "texts":  # pieces of at most 15 words, in order
            texts = [list(map(int, line.split())) for line in file.read_text().splitlines()]
            rows = [
                row
                for batch in batches
                for row in " ".join(map(str, batch.inputs["input_ids"][0].tolist())).split(" 0 ")
            ]
            assert max(len([word for word in row.split() if word != "0"]) for row in rows) == 15
            assert all(words.index(text[-1]) - words.index(text[0]) == len(text) - 1 for text in texts)
        sizes = [batch.tokens for batch in batches]
        assert sizes == [batch.inputs["input_ids"].numel() for batch in batches]
        assert max(sizes) <= 60
        assert np.mean(sizes) > 45
        assert [facts(batch) for batch in once(part.part, tokenize, batch_tokens=60, seed=3)] == [
            facts(batch) for batch in batches
        ]


def test_a_sample_over_the_budget_makes_a_batch_alone(corpora: tuple[Path, Path]) -> None:
    (part,) = (lane.part for lane in mixture(corpora, texts=1)._lanes.values())
    batches = list(once(part, tokenize, batch_tokens=4, seed=3))
    assert sum(len(batch.places) == 1 and batch.tokens > 4 for batch in batches) > 100
    assert all(len(batch.places) == 1 or batch.tokens <= 4 for batch in batches)


def test_every_batch_says_where_to_go_on(corpora: tuple[Path, Path]) -> None:
    """From the state that a batch carries the others follow as if nothing had been stopped, within long texts, too."""
    weights = {"texts": 2.0, "pairs": 1.0}
    batches = take(mixture(corpora, 1, 2, **weights), 160)
    assert max(batch.state["parts"]["texts"]["epoch"] for batch in batches) >= 1
    assert any(batch.state["parts"]["texts"]["piece"] for batch in batches)
    for number in (0, 1, 17, 50, 51, 52, 53, 99, 158):
        again = mixture(corpora, 1, 2, **weights)
        again.load_state_dict(json.loads(json.dumps(batches[number].state)))
        left = min(159 - number, 20)
        assert [*map(facts, take(again, left))] == [*map(facts, batches[number + 1 : number + 1 + left])]


def test_texts_without_tokens_are_left_out_or_refused(tmp_path: Path) -> None:
    """A corpus of them alone would be read for ever."""
    path = tmp_path / "texts.txt"
    path.write_text("\u200b\n" * 300 + "7 8\n")
    stream = Stream(open_readers([path], MONOLINGUAL))
    part = Part("texts", Joined(), stream, 1.0, max_tokens=15)

    def known(texts: list[str], **_: Any) -> dict[str, Any]:
        return tokenize([text.strip("\u200b") for text in texts])

    batches = take(Mixture([part], known, batch_tokens=7), 3)
    assert [batch.inputs["input_ids"].tolist() for batch in batches] == [[[0, 7, 8]]] * 3
    path.write_text("\u200b\n" * 3)
    stream = Stream(open_readers([path], MONOLINGUAL))
    part = Part("texts", Joined(), stream, 1.0, max_tokens=15)
    with pytest.raises(InputError, match=r"texts.txt': no text has a token; expected"):
        take(Mixture([part], known, batch_tokens=7), 1)
    assert list(once(part, known, batch_tokens=7)) == []


def test_what_does_not_fit_is_refused(corpora: tuple[Path, Path]) -> None:
    state = mixture(corpora, texts=1).state_dict()
    with pytest.raises(ValueError, match=r"parts: got \['pairs'\], the run to go on with has \['texts'\]"):
        mixture(corpora, pairs=1).load_state_dict(state)
    with pytest.raises(ValueError, match="weight above 0"):
        mixture(corpora, texts=0)


def test_a_thread_is_ahead_and_ends_with_its_reader() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number
            if number == 50:
                raise KeyError("made up")

    assert list(islice(ahead(range(100)), 200)) == list(range(100))
    reader = ahead(numbers(), depth=3)
    assert next(reader) == 0
    wait_until(lambda: len(made) >= 4)
    assert len(made) <= 6
    assert list(islice(reader, 50)) == list(range(1, 51))
    with pytest.raises(KeyError, match="made up"):
        next(reader)
    reader = ahead(numbers(), depth=3)
    next(reader)
    reader.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name == "batches ahead"]

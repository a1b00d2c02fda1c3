"""Readers around others: sentences that follow each other, and languages."""

from itertools import pairwise
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_fast.files.errors import InputError
from erniem_fast.files.rows import BadLines
from erniem_fast.training.readers import Following, Spoken
from erniem_fast.training.streams import MONOLINGUAL, PARALLEL, Reader, Stream, open_readers


def reader(source: object, columns: object = MONOLINGUAL) -> Reader:
    (made,) = open_readers([source], columns)  # type: ignore[arg-type]
    return made


@settings(max_examples=25)
@given(documents=st.lists(st.integers(1, 5), min_size=1, max_size=5).filter(lambda sizes: max(sizes) > 1))
def test_each_sentence_is_paired_with_the_next_of_its_document(tmp_path: Path, documents: list[int]) -> None:
    texts = [[f"s{number}.{place}" for place in range(size)] for number, size in enumerate(documents)]
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join("\n".join(document) for document in texts) + "\n")
    expected = [pair for document in texts for pair in pairwise(document)]
    source = Following(reader(path))
    assert [sample.texts for sample in source.read(BadLines())] == expected
    found = list(Stream([source], seed=1).once())
    assert sorted(sample.texts for sample in found) == sorted(expected)
    assert all(path.read_text().splitlines()[int(one.place.split(":")[-1]) - 1] == one.texts[0] for one in found)


def test_a_bad_line_parts_documents(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n{"no": 1}\n{"text": "c"}\n{"text": "d"}\n')
    bad = BadLines(skip=True)
    assert [sample.texts for sample in Following(reader(path)).read(bad)] == [("a", "b"), ("c", "d")]
    assert bad.count == 1
    rows = Following(reader(Dataset.from_dict({"text": ["a", "b", "c"]})))
    assert [sample.texts for sample in rows.read(BadLines())] == [("a", "b"), ("b", "c")]
    rows.check()


def test_text_without_next_sentences_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("a\n\nb\n")
    with pytest.raises(InputError, match=r"texts.txt': no text follows another; expected a sentence a line"):
        Following(reader(path)).check()


def test_languages_that_the_model_does_not_know_are_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("a\tb\tde\ten\na\tb\tde\tja\na\tb\na\tb\ten\tde\n")
    spoken = Spoken(reader(path, PARALLEL), ["de", "en"])
    with pytest.raises(InputError, match=r"pairs.tsv:2: has the language 'ja'; the model knows 'de', 'en'"):
        spoken.check()
    bad = BadLines(skip=True)
    assert [sample.languages for sample in spoken.read(bad)] == [("de", "en"), ("en", "de")]
    assert bad.count == 2
    rows = reader(Dataset.from_dict({"text": ["a"], "language": [["de"]]}))
    with pytest.raises(InputError, match=r"has the language \['de'\]"):
        list(Spoken(rows, ["de"]).read(BadLines()))

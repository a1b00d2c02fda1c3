"""The texts that are served: kinds in their shares, none twice before all have come, the same ones every time."""

import json
from collections import Counter
from pathlib import Path

import pytest

from bench.serving import corpus


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    questions = [{"question": f"question {number}"} for number in range(45)]
    articles = [{"paragraphs": [{"context": f"context {number}", "qas": []} for number in range(9)]}]
    articles.append({"paragraphs": [{"context": "context 9", "qas": questions}]})
    (tmp_path / "xquad").mkdir()
    (tmp_path / "xquad" / "xquad.en.json").write_text(json.dumps({"data": articles}), encoding="utf-8")
    (tmp_path / "tatoeba").mkdir()
    for language, lines in (("deu", range(30)), ("eng", range(20, 45))):
        text = "\n".join(f"sentence {number}" for number in lines) + "\n\n"
        (tmp_path / "tatoeba" / f"tatoeba.deu-eng.{language}").write_text(text, encoding="utf-8")
    return tmp_path


def test_kinds_come_in_their_shares_in_one_order(folder: Path) -> None:
    texts = corpus.draw(100, folder)
    assert Counter(text.split()[0] for text in texts) == {"context": 10, "question": 45, "sentence": 45}
    assert len(set(texts)) == 100
    assert texts == corpus.draw(100, folder)
    assert len({text.split()[0] for text in texts[:10]}) > 1, "they are shuffled"


def test_a_kind_repeats_only_when_all_of_it_have_come(folder: Path) -> None:
    assert set(Counter(corpus.draw(250, folder)).values()) == {2, 3}


def test_without_a_folder_the_texts_are_those_of_the_checkout() -> None:
    texts = corpus.draw(300, None)
    assert len(texts) == 300
    assert sum(len(text) >= 300 for text in texts) >= 30
    assert "checkout" in corpus.corpus(None).source


def test_a_folder_without_texts_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"expected a folder with xquad.*got {tmp_path}"):
        corpus.draw(1, tmp_path)

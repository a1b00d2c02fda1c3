"""Lengths are made from a folder of XQuAD."""

import json
from pathlib import Path

import pytest
from helpers.paths import ROOT

from bench.tools import make_lengths


def test_lengths_are_made_from_a_folder_of_xquad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_lengths, "CONTEXTS_PER_LANGUAGE", 2)
    paragraphs = [
        {"context": f"A context, number {i}. " * 60 * i, "qas": [{"question": f"Question {j}?"} for j in range(count)]}
        for i, count in enumerate((3, 4, 2), 1)
    ]
    for language in make_lengths.LANGUAGES:
        content = json.dumps({"data": [{"paragraphs": paragraphs}]})
        (tmp_path / f"xquad.{language}.json").write_text(content, encoding="utf-8")
    monkeypatch.setattr(make_lengths, "PAIRS_PER_LANGUAGE", 20)
    pairs = make_lengths.make_pairs(tmp_path, ROOT / "tests/golden/tokenizer")
    assert len(pairs["lengths"]) == 4 * 20
    assert max(pairs["lengths"]) <= make_lengths.MAX_SENTENCE_TOKENS + 20
    made = [make_lengths.make(tmp_path, ROOT / "tests/golden/tokenizer") for _ in range(2)]
    assert made[0] == made[1]
    assert len(made[0]["lengths"]) == 4 * 2 * 4
    assert sum(length == 512 for length in made[0]["lengths"]) >= 4  # the second context of each language is cut
    assert sum(length < 20 for length in made[0]["lengths"]) == 4 * 2 * 3


def test_lengths_of_a_service_are_of_questions_and_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_lengths, "SENTENCES", 4)
    paragraphs = [
        {"context": "A context. " * 100, "qas": [{"question": "One long question, is it not? Or is it?"}] * 3}
    ]
    for language in make_lengths.LANGUAGES:
        content = json.dumps({"data": [{"paragraphs": paragraphs}]})
        (tmp_path / f"xquad.{language}.json").write_text(content, encoding="utf-8")
    for language, sentence in (("deu", "Ja."), ("eng", "Yes.")):
        lines = "".join(f"{sentence[:-1]}{number}\n\n" for number in range(3))
        (tmp_path / f"tatoeba.deu-eng.{language}").write_text(lines, encoding="utf-8")
    tokenizer = ROOT / "tests/golden/tokenizer"
    found = make_lengths.make_served(tmp_path, tmp_path, tokenizer, contexts=1, questions=2)
    assert len(found["lengths"]) == 4 + 4 * (1 + 2)
    assert sum(length > 100 for length in found["lengths"]) == 4
    assert sum(length < 7 for length in found["lengths"]) == 4
    assert "Tatoeba" in found["source"]
    assert found == make_lengths.make_served(tmp_path, tmp_path, tokenizer, contexts=1, questions=2)

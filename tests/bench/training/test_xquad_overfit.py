"""Learning XQuAD's questions by heart works on a few of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.xquad import ROWS

from bench.training import xquad_overfit


@pytest.mark.slow
def test_a_dry_run(tmp_path: Path, dry_run: Callable[..., dict[str, Any]]) -> None:
    texts, questions = tmp_path / "texts", {}
    texts.mkdir()
    for language in xquad_overfit.LANGUAGES:
        paragraphs = []
        questions[language] = [row for row in ROWS if row["lang"] == language]
        for row in questions[language]:
            answer = {"text": row["answers"]["text"][0], "answer_start": row["answers"]["answer_start"][0]}
            question = {"id": row["id"], "question": row["question"], "answers": [answer]}
            paragraphs.append({"context": row["context"], "qas": [question]})
        content = {"version": "1.1", "data": [{"title": "", "paragraphs": paragraphs}]}
        (texts / f"xquad.{language}.json").write_text(json.dumps(content), encoding="utf-8")
    head = xquad_overfit.head_of(content, 5)
    assert [one["qas"][0]["id"] for one in head["data"][0]["paragraphs"]] == [row["id"] for row in questions["ar"][:5]]
    found = dry_run(xquad_overfit, "--texts", texts)
    assert found["suite"] == "training-xquad"
    for language, script in xquad_overfit.LANGUAGES.items():
        assert found["figures"][f"{language} ({script} script): questions"]["value"] == 4
        assert f"loss, {language}" in found["curves"]

"""Fine-tuning from files to folders: what the figures say, the saved folder does, for answers, spans and vectors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import family_folders, golden_tokenizer
from helpers.xquad import ROWS
from typer.testing import CliRunner

import erniem_fast
from erniem_fast import Encoder, ErnieMConfig
from erniem_fast.cli.main import app
from erniem_fast.training.finetune import fine_tune
from erniem_fast.training.tasks.base import Asked
from erniem_fast.training.tasks.embed import Embedding
from erniem_fast.training.tasks.extract import Extraction
from erniem_fast.training.tasks.question_answering import QuestionAnswering

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "initializer_range": 0.2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
"""Weights of a width of 32 that are large enough to learn soon."""
FAST = {"learning_rate": 3e-3, "layer_decay": 1.0, "batch_tokens": 1024}
LONG = {"epochs": 150.0, "eval_steps": 30}
TEXTS = [
    ("Wo ist der Bahnhof?", "Where is the station?"),
    ("Ich bin müde.", "I'm tired."),
    ("今天天气很好。", "The weather is nice today."),
    ("أين المحطة؟", "Which train goes to Berlin?"),
    ("मुझे दिल्ली में रहना पसंद है।", "I like living in Delhi."),
    ("Das Brot ist alt.", "The bread is old."),
]
DOCUMENTS = [
    ("In 1997, Steve was excited to become the CEO of Apple.", {"Person": ["Steve"], "Company": ["Apple"]}),
    ("Tom bought a house in Ulm.", {"Person": ["Tom"], "City": ["Ulm"]}),
    ("昨天谷爱凌在北京获得金牌。", {"Person": ["谷爱凌"], "City": ["北京"]}),
    ("وُلد الرئيس في القاهرة عام 1970.", {"City": ["القاهرة"]}),
]


def save(folder: Path, family: str, name: str = "ErnieMModel") -> Path:
    """A checkpoint with random weights."""
    if family != "ErnieM":
        return family_folders.save_family(folder, family, "Model", 400)
    tokenizer = golden_tokenizer.build()
    getattr(erniem_fast, name)(ErnieMConfig(vocab_size=len(tokenizer), **SIZES)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def learn(folder: Path, asked: Asked, rows: list[Any], model: Path, **settings: Any) -> dict[str, float]:
    data = write(folder / "rows.jsonl", rows)
    return fine_tune(
        asked, data, data, model=str(model), out=str(folder / "out"), settings=FAST | settings, dtype="float32",
        device="cpu", say=lambda line: None,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("impossible", [False, True])
@pytest.mark.parametrize("family", ["ErnieM", "Bert"])
def test_the_saved_folder_answers_as_often_as_the_figures_say(tmp_path: Path, family: str, impossible: bool) -> None:
    rows = [row for row in ROWS if row["lang"] in ("en", "de")][: 16 if family == "Bert" else 8]
    if impossible:
        rows = [*rows[:6], *(row | {"answers": [], "question": "Is it?"} for row in rows[6:8])]
    task = Asked(QuestionAnswering, {"stride": 32})
    figures = learn(tmp_path, task, rows, save(tmp_path / "model", family), epochs=6.0, max_length=200)
    encoder = Encoder.from_pretrained(tmp_path / "out", dtype="float32")
    answers = encoder.answer(rows, max_seq_len=200, doc_stride=32, handle_impossible_answer=impossible)
    right = []
    for row, answer in zip(rows, answers, strict=True):
        given = row["answers"]
        expected = (given["answer_start"][0], given["text"][0]) if given else (0, "")
        right.append((answer["start"], answer["answer"]) == expected)
    assert figures["exact_span"] == pytest.approx(np.mean(right))
    assert figures["f1"] >= figures["exact_match"] >= figures["exact_span"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"][0].endswith("QuestionAnswering")


@pytest.mark.slow
def test_the_saved_folder_extracts_what_the_figures_say(tmp_path: Path) -> None:
    names = ["Person", "City", "Company"]

    def spans(text: str, parts: list[str]) -> list[dict[str, Any]]:
        return [{"text": part, "start": text.index(part), "end": text.index(part) + len(part)} for part in parts]

    rows = [
        {"text": text, "result": {name: spans(text, parts) for name, parts in found.items()}}
        for text, found in DOCUMENTS
    ]  # fmt: skip
    model = save(tmp_path / "model", "ErnieM", "ErnieMForInformationExtraction")
    figures = learn(tmp_path, Asked(Extraction, {"schema": names}), rows, model, epochs=200.0, eval_steps=50)
    results = Encoder.from_pretrained(tmp_path / "out", dtype="float32").extract([row["text"] for row in rows], names)
    right = given = wanted = 0
    for row, result in zip(rows, results, strict=True):
        for name in names:
            found = {(one["start"], one["end"]) for one in result.get(name, [])}
            expected = {(one["start"], one["end"]) for one in row["result"].get(name, [])}
            right, given, wanted = right + len(found & expected), given + len(found), wanted + len(expected)
    assert figures["f1"] == pytest.approx(2 * right / (given + wanted))
    assert figures["recall"] == pytest.approx(right / wanted)
    assert figures["f1"] > 0.5, "nothing was learned"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ErnieM", "XLMRoberta"])
@pytest.mark.parametrize("loss", ["softmax", "hardest-negative"])
def test_vectors_of_the_saved_folder_find_what_the_figures_say(tmp_path: Path, family: str, loss: str) -> None:
    rows = [{"anchor": anchor, "positive": positive} for anchor, positive in TEXTS]
    model = save(tmp_path / "model", family)
    figures = learn(tmp_path, Asked(Embedding, {"loss": loss}), rows, model, **LONG, max_length=40)
    encoder = Encoder.from_pretrained(tmp_path / "out", dtype="float32")
    anchors, positives = (encoder.encode(list(side)) for side in zip(*TEXTS, strict=True))
    np.testing.assert_allclose(np.linalg.norm(anchors, axis=1), 1.0, rtol=1e-5)
    scores = torch.from_numpy(anchors @ positives.T)
    places = torch.arange(len(TEXTS))
    there, back = ((scores.argmax(side) == places).float().mean().item() for side in (1, 0))
    assert figures["accuracy_of_anchors"] == pytest.approx(there)
    assert figures["accuracy_of_positives"] == pytest.approx(back)
    assert figures["accuracy"] > 0.6, "nothing was learned"
    assert encoder.max_tokens == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["qa", "--stride", "-1"], "--stride"),
        (["extract", "--schema", "[]"], "--schema '[]': schema is empty"),
        (["extract", "--language", "de"], "--language 'de': expected one of zh, en"),
        (["embed", "--loss", "triplet"], "--loss 'triplet': expected one of softmax, hardest-negative"),
        (["embed", "--temperature", "0"], "--temperature 0.0: expected a number above 0"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    command, *options = arguments
    given = ["finetune", command, "rows.jsonl", "--model", "model", "--out", str(tmp_path / "out"), *options]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 2
    assert message in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bad_lines_are_counted_on_request(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "ErnieM")
    good = [row for row in ROWS if row["lang"] == "en"][:2]
    wrong = good[0] | {"id": "q7", "answers": {"text": ["nowhere"], "answer_start": [0]}}
    data = write(tmp_path / "rows.jsonl", [good[0], wrong, good[1]])
    command = ["finetune", "qa", data, "--model", str(model), "--out", str(tmp_path / "out"), "--epochs", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert f"TRAIN '{data}': line 2 question 'q7': has the answer 'nowhere' at 0" in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*command, "--skip-bad-lines"])
    assert done.exit_code == 0, done.output
    assert "1 bad lines" in " ".join(done.output.split())
    assert (tmp_path / "out" / "model.safetensors").exists()

"""`erniem-fast zero-shot`: a line of JSON a text, equal to transformers' pipeline."""

import json

import numpy as np
import pytest
import torch
from helpers.command_line import MAX_TOKENS, TEXTS, assert_one_line, run
from transformers import pipeline

import erniem_fast
from erniem_fast import reference

LABELS = ["travel", "economy", "sport, games"]
OPTIONS = ["--labels", "travel, economy", "--label", "sport, games"]


@pytest.fixture(scope="session")
def nli(save, tmp_path_factory):
    names = ("entailment", "neutral", "contradiction")
    return save(
        tmp_path_factory.mktemp("models") / "nli", "ErnieMForSequenceClassification", num_labels=3,
        id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)},
    )  # fmt: skip


def run_zero_shot(texts, model, *options, stdin=None):
    return run("zero-shot", texts, "--model", model, "--dtype", "float32", *options, stdin=stdin)


def records(text):
    return [json.loads(line) for line in text.split("\n")[:-1]]


@pytest.mark.parametrize("multi_label", [False, True])
def test_equal_to_the_pipeline(nli, tokenizer, texts, tmp_path, multi_label):
    out = tmp_path / "labels.jsonl"
    options = [*OPTIONS, "--hypothesis-template", "Es geht um {}.", *(["--multi-label"] if multi_label else [])]
    result = run_zero_shot(texts, nli, *options, "--out", out, "--batch-tokens", 100)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert f"1 of {len(TEXTS)} texts were cut" in result.stderr
    assert "Classifying: 100%" in result.stderr
    found = records(out.read_text(encoding="utf-8"))
    assert [record["sequence"] for record in found] == TEXTS
    plain = reference.ErnieMForSequenceClassification.from_pretrained(nli).eval()
    tokenizer = erniem_fast.ErnieMTokenizer.from_pretrained(nli, model_max_length=MAX_TOKENS)
    pipe = pipeline("zero-shot-classification", plain, tokenizer=tokenizer, device="cpu")
    for text, record in zip(TEXTS, found, strict=True):
        assert list(record) == ["sequence", "labels", "scores"]
        if text.strip():
            expected = pipe(text, LABELS, hypothesis_template="Es geht um {}.", multi_label=multi_label)
            assert record["labels"] == expected["labels"]
            np.testing.assert_allclose(record["scores"], expected["scores"], atol=1e-5, rtol=0)
        else:
            assert record["labels"] == record["scores"] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.jsonl", "texts.txt"]


def test_from_stdin_to_stdout(nli):
    result = run_zero_shot("-", nli, "--labels", "a,b", stdin="Hello\nПривет\n")
    assert result.exit_code == 0, result.output
    assert [record["sequence"] for record in records(result.stdout)] == ["Hello", "Привет"]
    assert "Привет" in result.stdout
    assert "cut" not in result.stderr


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ([], ["--labels", "at least one label"]),
        (["--labels", ""], ["--labels", "empty"]),
        (["--labels", "a,,b"], ["--labels", "empty"]),
        (["--labels", "a,b", "--label", "a"], ["--labels", "'a' more than once"]),
        (["--labels", "a", "--hypothesis-template", "About."], ["--hypothesis-template", "'About.'"]),
        (["--labels", "a", "--hypothesis-template", "{b}"], ["--hypothesis-template", "'{b}'"]),
        (["--labels", "a,\udcff"], ["--labels", "lone surrogate"]),
        (["--labels", "a", "--dtype", "int4"], ["--dtype", "'int4'"]),
        (["--labels", "a", "--batch-tokens", "0"], ["--batch-tokens", "at least 1"]),
        (["--labels", "a", "--device", "tpu"], ["--device", "'tpu'"]),
        (["--labels", "a", "--out", "v.csv"], ["--out", ".csv is not written", ".jsonl"]),
        (["--labels", "a " * 50], ["Error: --labels: candidate_labels must leave room"]),
    ],
)
def test_bad_options(nli, texts, tmp_path, options, parts):
    result = run_zero_shot(texts, nli, *options)
    if "leave room" in parts[0]:  # known when the tokenizer is loaded, behind the bars
        assert result.exit_code == 2
        assert parts[0] in result.stderr.splitlines()[-1]
    else:
        assert_one_line(result, *parts)
    assert [p.name for p in tmp_path.iterdir()] == ["texts.txt"]


def test_bad_models(checkpoint, nli, texts, tmp_path):
    assert_one_line(run_zero_shot(texts, checkpoint, *OPTIONS), "--model", "ErnieMModel", "SequenceClassification")
    model = erniem_fast.ErnieMForSequenceClassification.from_pretrained(nli)
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    folder = tmp_path / "nan"
    model.save_pretrained(folder)
    for name in ("vocab.txt", "sentencepiece.bpe.model"):
        (folder / name).write_bytes((nli / name).read_bytes())
    result = run_zero_shot(texts, folder, *OPTIONS, "--out", tmp_path / "labels.jsonl")
    assert result.exit_code == 2
    assert "Error: --model: model must give finite scores" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "labels.jsonl").exists()


def test_help():
    text = " ".join(run("zero-shot", "--help").stdout.replace("│", " ").split())
    assert "with {} in the place of the label" in text
    assert "[default: This example is {}.]" in text

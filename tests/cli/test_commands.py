"""Every command on files: each input and output, results equal to the engine's, bad input in one line."""

import csv
import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.command_line import TEXTS, assert_one_line, run, run_embed
from helpers.task_models import labels
from pyarrow import parquet
from safetensors.numpy import load_file

from erniem_fast import Encoder

ROWS = [
    {"id": f"n{number}", "text": text, "pair": "Wie geht's?", "question": "Who sings?", "context": text}
    for number, text in enumerate(TEXTS)
]
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "classify": ("ErnieMForSequenceClassification", labels("a", "b", "c")),
    "tag": ("ErnieMForTokenClassification", labels("O", "B-PER", "I-PER")),
    "answer": ("ErnieMForQuestionAnswering", {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(save: Any, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("heads")
    return {"embed": checkpoint} | {
        command: save(folder / command, head, **changes) for command, (head, changes) in HEADS.items()
    }


def write(path: Path, rows: Sequence[dict[str, Any]] = ROWS) -> Path:
    kind = path.suffixes[0]
    if kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif kind == ".parquet":
        parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    elif kind == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_bytes("\n".join(row["text"] for row in rows).encode())
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def records(out: Path) -> list[dict[str, Any]]:
    if out.suffix == ".parquet":
        return parquet.read_table(out).to_pylist()
    return [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]


def assert_same(found: Any, expected: Any) -> None:
    """Equal but for the last digits."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5)
    else:
        assert found == expected


@pytest.mark.parametrize("kind", [pytest.param(".jsonl", marks=pytest.mark.slow), ".csv.gz", ".parquet"])
def test_embed_reads_every_format(models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    assert run_embed(write(tmp_path / "t.txt"), models["embed"], tmp_path / "expected.npy").exit_code == 0
    result = run_embed(write(tmp_path / f"u{kind}"), models["embed"], tmp_path / "v.npy")
    assert result.exit_code == 0, result.stderr
    assert "100%" in result.stderr  # the bar knows how many there are
    assert (tmp_path / "v.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


@pytest.mark.parametrize("kind", [pytest.param(".txt", marks=pytest.mark.slow), ".parquet"])
def test_embed_writes_every_format(models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    source = write(tmp_path / f"t{kind}")
    for ending in (".npy", ".safetensors", ".jsonl", ".parquet", ""):
        result = run_embed(source, models["embed"], tmp_path / f"v{ending}")
        assert result.exit_code == 0, result.stderr
    vectors = np.load(tmp_path / "v.npy")
    assert vectors.shape == (len(TEXTS), 32)
    assert (tmp_path / "v").read_bytes() == (tmp_path / "v.npy").read_bytes()
    np.testing.assert_array_equal(load_file(tmp_path / "v.safetensors")["embeddings"], vectors)
    for ending in (".jsonl", ".parquet"):
        found = records(tmp_path / f"v{ending}")
        np.testing.assert_array_equal(np.array([row["embedding"] for row in found], dtype=np.float32), vectors)
        named = [] if kind == ".txt" else [row["id"] for row in ROWS]
        assert [row["id"] for row in found if "id" in row] == named
    assert set(os.listdir(tmp_path)) == {source.name, "v", "v.npy", "v.safetensors", "v.jsonl", "v.parquet"}


def test_options_of_embed(models: dict[str, Path], tmp_path: Path) -> None:
    source = write(tmp_path / "t.txt")
    encoder = Encoder.from_pretrained(str(models["embed"]), dtype="float32")
    for options, arguments in (
        (["--normalize"], {"normalize": True}),
        (["--truncate-dim", "7", "--pooling", "cls"], {"truncate_dim": 7, "pooling": "cls"}),
        (["--prompt", "query: "], {"prompt": "query: "}),
    ):
        assert run_embed(source, models["embed"], tmp_path / "v.npy", *options).exit_code == 0
        np.testing.assert_allclose(np.load(tmp_path / "v.npy"), encoder.encode(TEXTS, **arguments), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--truncate-dim", "0"], ["--truncate-dim '0'", "at least 1"]),
        (["--prompt-name", "query"], ["--prompt-name: prompt_name must be one of the folder's prompts"]),
        (["--prompt", "a", "--prompt-name", "b"], ["--prompt-name: prompt_name must be None beside a prompt"]),
        (["--text-column", "body"], ["INPUT", "has no column 'body'"]),
        (["--format", "xml"], ["--format 'xml'", "txt, jsonl, csv, parquet"]),
        (["--format", "jsonl"], ["INPUT", "line 1 is not JSON"]),
        (["--dtype", "int4"], ["--dtype 'int4'", "auto, float32, bfloat16, float16, int8"]),
        (["--batch-tokens", "-1"], ["--batch-tokens '-1'", "at least 1"]),
    ],
)
def test_bad_options(models: dict[str, Path], tmp_path: Path, options: list[str], parts: list[str]) -> None:
    source = write(tmp_path / "t.txt")
    assert_one_line(run_embed(source, models["embed"], tmp_path / "v.npy", *options), *parts)
    assert os.listdir(tmp_path) == [source.name]


@pytest.mark.parametrize("ending", [".jsonl", pytest.param(".parquet", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("command", "options", "arguments"),
    [
        ("classify", [], {}),
        ("classify", ["--top-k", "all", "--activation", "sigmoid"], {"top_k": None, "activation": "sigmoid"}),
        ("classify", ["--text-pair-column", "pair", "--top-k", "2"], {"top_k": 2}),
        ("tag", [], {}),
        ("tag", ["--aggregation-strategy", "none", "--stride", "5"], {"aggregation_strategy": "none", "stride": 5}),
        ("answer", ["--max-answer-len", "3"], {"max_answer_len": 3}),
        ("answer", ["--handle-impossible-answer"], {"handle_impossible_answer": True}),
    ],
)  # fmt: skip
def test_results_are_the_engines(
    models: dict[str, Path], tmp_path: Path, command: str, options: list[str], arguments: dict[str, Any], ending: str
) -> None:
    out = tmp_path / f"r{ending}"
    result = run(
        command, write(tmp_path / "t.jsonl"), "--model", models[command], "--dtype", "float32", "--out", out, *options
    )
    assert result.exit_code == 0, result.stderr
    encoder = Encoder.from_pretrained(str(models[command]), dtype="float32")
    if command == "answer":
        filled = [row for row in ROWS if row["context"].strip()]
        answers = iter(encoder.stream(filled, "answer", **arguments))
        empty = {"score": 0.0, "start": 0, "end": 0, "answer": ""}
        expected = [next(answers) if row in filled else empty for row in ROWS]
    elif command == "tag":
        expected = [{"entities": found} for found in encoder.tag(TEXTS, **arguments)]
    else:
        items = [(row["text"], row["pair"]) for row in ROWS] if "--text-pair-column" in options else TEXTS
        expected = encoder.classify(items, **arguments)
        if arguments:
            expected = [
                {"labels": [o["label"] for o in found], "scores": [o["score"] for o in found]} for found in expected
            ]
    found = records(out)
    assert [row.pop("id") for row in found] == [row["id"] for row in ROWS]
    if ending == ".parquet":  # whose structs have an order of their own
        found, expected = (json.loads(json.dumps(rows, sort_keys=True)) for rows in (found, expected))
    assert_same(found, expected)


def test_stdin_to_stdout(models: dict[str, Path]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    result = run("classify", "-", "--format", "jsonl", "--model", models["classify"], stdin=lines)
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [row["id"] for row in ROWS]


def test_answers_of_empty_texts_alone(models: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"question": "", "context": "a"}, {"question": "b", "context": None}]
    result = run("answer", write(tmp_path / "t.jsonl", rows), "--model", models["answer"])
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"score": 0, "start": 0, "end": 0, "answer": ""}
    ] * 2


def test_a_record_that_the_engine_refuses_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    rows = [*ROWS, {"question": "word " * 60, "context": "a"}]
    result = run(
        "answer", write(tmp_path / "t.jsonl", rows), "--model", models["answer"], "--out", tmp_path / "r.jsonl"
    )
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"Error: INPUT '{tmp_path / 't.jsonl'}': record {len(rows)} must leave room for the context")
    assert not (tmp_path / "r.jsonl").exists()


def test_names_of_records_that_are_results(models: dict[str, Path], tmp_path: Path) -> None:
    source = write(tmp_path / "t.jsonl", [{"text": "a", "label": "mine"}])
    result = run("classify", source, "--model", models["classify"], "--id-column", "label")
    assert_one_line(result, "--id-column 'label': is the name of a result")


@pytest.mark.parametrize(
    ("command", "options", "parts"),
    [
        ("tag", [], ["--model: tag needs a model with a head for TokenClassification", "ErnieMModel"]),
        ("classify", [], ["--model: classify needs a model with a head for SequenceClassification"]),
        ("answer", ["--question-column", "text", "--context-column", "text"], ["--model: answer needs a model"]),
        ("answer", [], ["has no column 'question'"]),
        ("classify", ["--top-k", "0"], ["--top-k '0'", "at least 1"]),
        ("classify", ["--activation", "relu"], ["--activation 'relu'", "softmax, sigmoid, none"]),
        ("tag", ["--aggregation-strategy", "best"], ["--aggregation-strategy 'best'", "none, simple"]),
        ("tag", ["--stride", "x"], ["--stride 'x'"]),
        ("answer", ["--max-answer-len", "0"], ["--max-answer-len '0'"]),
        ("tag", ["--out", "r.npy"], ["the ending .npy is not written", ".jsonl or .parquet"]),
    ],
)
def test_what_commands_refuse(
    models: dict[str, Path], tmp_path: Path, command: str, options: list[str], parts: list[str]
) -> None:
    source = write(tmp_path / "t.txt" if "'question'" in str(parts) else tmp_path / "t.jsonl")
    assert_one_line(run(command, source, "--model", models["embed"], *options), *parts)


@pytest.mark.parametrize("out", ["texts.npy", "missing/v.npy", "texts.txt/v.npy"])
def test_outputs_are_checked_before_the_model(texts: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "texts.npy").symlink_to(texts)
    # The model is missing, too: had it come to that, the message would be another.
    assert_one_line(run_embed(texts, tmp_path / "nowhere", tmp_path / out), "--out", out, "expected")
    assert texts.read_bytes().startswith(b"Tom")
    assert set(os.listdir(tmp_path)) == {"texts.txt", "texts.npy"}


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"", "holds no records"), (b"a\n\xff", "line 2 is not UTF-8"), (b"a\0", "line 1 holds a NUL")],
)
def test_inputs_are_checked_before_the_model(tmp_path: Path, content: bytes, part: str) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    for source, stdin in ((tmp_path / "t.txt", None), ("-", content)):
        if stdin == b"a\n\xff":
            continue  # nobody knows it before it has been read
        assert_one_line(run_embed(source, tmp_path / "nowhere", tmp_path / "v.npy", stdin=stdin), "INPUT", part)
    assert os.listdir(tmp_path) == ["t.txt"]

"""The tool that times the tokenizer: its ratios are of the same texts, and the Rust tokenizer has the same pieces."""

import json

import pytest

from bench.tools import time_tokenizer


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """The tool turns off the threads of the whole process."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def test_it_writes_what_it_prints(tmp_path, capsys):
    assert time_tokenizer.main(["--lines", "30", "--rounds", "1", "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("tokenizer-*.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["tiny"]
    assert [row["texts"] for row in content["rows"].values()] == [30, 3]
    for row in content["rows"].values():
        assert row["to_sentencepiece"]["sentencepiece, a batch"] == 1
        assert all(value > 0 for value in [*row["seconds"].values(), row["rust_to_ids"]])
    printed = capsys.readouterr().out
    assert "30 texts" in printed
    assert str(path) in printed


def test_the_rust_tokenizer_has_the_same_pieces():
    tokenizer = time_tokenizer.ErnieMTokenizer(time_tokenizer.MODEL, time_tokenizer.DATA / "vocab.txt")
    rust = time_tokenizer.rust_tokenizer(tokenizer.sp_model)
    for text in ("Hello, my dog is cute", "Der Zug kommt später an.", "今天股市大涨"):
        assert rust.tokenize(text) == tokenizer.sp_model.encode(text, out_type=str)


def test_lines_of_a_file(tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("one\ntwo\n", encoding="utf-8")
    time_tokenizer.main(["--texts", str(tmp_path / "texts.txt"), "--rounds", "1", "--output", str(tmp_path)])
    assert "2 texts" in capsys.readouterr().out
    assert not [*tmp_path.glob("*.json")]

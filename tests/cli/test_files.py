"""Texts in, vectors out: what is refused, what is replaced, what is left behind."""

import io
import json
import os
import stat
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.command_line import assert_one_line, run, run_embed

from erniem_fast.cli.errors import InputError
from erniem_fast.cli.files import read_texts, record_file, vector_file


def test_line_ends_and_byte_order_mark(checkpoint, tmp_path):
    plain, other = tmp_path / "plain.txt", tmp_path / "other.txt"
    plain.write_bytes(b"one\n\ntwo\n")
    other.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo")
    for path in (plain, other):
        assert run_embed(path, checkpoint, path.with_suffix(".npy")).exit_code == 0
    first, second = (np.load(path.with_suffix(".npy")) for path in (plain, other))
    assert first.shape == (3, 32)
    np.testing.assert_array_equal(first, second)


def test_only_empty_lines(checkpoint, tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\n\n")
    assert run_embed(tmp_path / "t.txt", checkpoint, tmp_path / "v.npy").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), np.zeros((2, 32)))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "No such file"),
        (b"", "empty"),
        (b"good\nalso\nbad \xff\xfe\n", "line 3 is not UTF-8"),
        ("Grüße".encode("utf-16"), "line 1 is not UTF-8"),
        (b"good\nbad\0\n", "line 2 holds a NUL character"),
        ("folder", "Is a directory"),
    ],
)
def test_bad_texts(checkpoint, tmp_path, content, part):
    path = tmp_path / "t.txt"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    before = list(tmp_path.iterdir())
    assert_one_line(run_embed(path, checkpoint, tmp_path / "v.npy"), "TEXTS", repr(str(path)), part, "UTF-8 text file")
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize("where", ["missing/v.npy", "texts.txt/v.npy", "folder", "folder.npy", "x" * 300, "texts.npy"])
def test_bad_outputs_are_known_before_the_work(texts, tmp_path, where):
    for folder in ("folder", "folder.npy"):
        (tmp_path / folder).mkdir()
    (tmp_path / "texts.npy").symlink_to(texts)
    before = sorted(tmp_path.rglob("*"))
    # The model is missing too: had it come to that, the message would be another.
    result = run_embed(texts, tmp_path / "nowhere", tmp_path / where)
    assert_one_line(result, "--out", where, "expected")
    assert sorted(tmp_path.rglob("*")) == before
    assert texts.read_bytes().startswith(b"Tom")


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no /dev")
def test_a_device_is_not_replaced(texts, tmp_path):
    assert_one_line(run_embed(texts, tmp_path / "nowhere", "/dev/null"), "--out", "Not a regular file")
    assert not os.path.isfile("/dev/null")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_leaves_nothing_behind(tmp_path, error):
    target = tmp_path / "v.npy"
    target.write_bytes(b"old")

    def work():
        with vector_file(str(target)) as file:
            file.allocate(3, 4)
            raise error

    with pytest.raises(error):
        work()
    assert [p.name for p in tmp_path.iterdir()] == ["v.npy"]
    assert target.read_bytes() == b"old"


def test_the_file_is_replaced_at_the_end(tmp_path):
    link, target = tmp_path / "link.npy", tmp_path / "v.npy"
    link.symlink_to(target)
    with vector_file(str(link)) as file:
        file.allocate(3, 4)
        file.write([1], np.ones((1, 4), dtype=np.float32))
        assert not target.exists()
    assert link.is_symlink()
    np.testing.assert_array_equal(np.load(target).sum(1), [0, 4, 0])
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_too_large_is_an_error_at_once(tmp_path):
    with pytest.raises(InputError, match="expected room for"), vector_file(str(tmp_path / "v.npy")) as file:
        file.allocate(2**41, 768)
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_what_numpy_writes(tmp_path):
    vectors = np.random.default_rng().standard_normal((7, 5), dtype=np.float32)
    with vector_file(str(tmp_path / "ours.npy")) as file:
        file.allocate(7, 5)
        for indices in ([6, 0, 3], [1], [5, 2, 4]):
            file.write(indices, vectors[indices])
    np.save(tmp_path / "theirs.npy", vectors)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path, mode):
    target = tmp_path / "v.npy"
    target.write_bytes(b"old")
    target.chmod(mode)
    with vector_file(str(target)) as file:
        (temporary,) = (path for path in tmp_path.iterdir() if path != target)
        assert stat.S_IMODE(temporary.stat().st_mode) == mode
        file.allocate(1, 2)
    assert stat.S_IMODE(target.stat().st_mode) == mode
    assert np.load(target).shape == (1, 2)


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    with vector_file(str(tmp_path / "v.npy")) as file:
        file.allocate(1, 2)
    assert (tmp_path / "v.npy").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path):
    name = ".erniem-fast-{}.tmp"
    others = {name.format("readme"), name.format("0" * 16) + ".npy", "x" + name.format("0" * 16), "other.tmp"}
    for other in others:
        (tmp_path / other).touch()
    folder = tmp_path / name.format("f" * 16)
    folder.mkdir()
    link = tmp_path / name.format("e" * 16)
    link.symlink_to(tmp_path / "other.tmp")
    (tmp_path / name.format("0" * 16)).write_bytes(b"left by a killed run")
    with vector_file(str(tmp_path / "first.npy")) as first:
        first.allocate(1, 2)
        # The first one runs, and keeps its file.
        with vector_file(str(tmp_path / "second.npy")) as second:
            second.allocate(2, 2)
    assert {p.name for p in tmp_path.iterdir()} == others | {folder.name, link.name, "first.npy", "second.npy"}


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".npy", ".gz", ".md"])
def test_files_of_other_kinds_are_not_read(tmp_path, ending):
    path = tmp_path / f"texts{ending}"
    path.write_bytes(b"one\ntwo\n")
    result = run_embed(path, tmp_path / "nowhere", tmp_path / "v.npy")
    assert_one_line(result, "TEXTS", repr(str(path)), f"the ending {ending} is not read", ".txt", "- for stdin")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["texts.txt", "texts.TXT", "texts"])
def test_texts_with_a_known_ending_or_none(checkpoint, tmp_path, name):
    (tmp_path / name).write_bytes(b"one\ntwo\n")
    assert run_embed(tmp_path / name, checkpoint, tmp_path / "v.npy").exit_code == 0
    assert np.load(tmp_path / "v.npy").shape == (2, 32)


@pytest.mark.parametrize("ending", [".parquet", ".jsonl", ".csv", ".npz", ".safetensors", ".txt", ".pt"])
def test_files_of_other_kinds_are_not_written(texts, tmp_path, ending):
    out = tmp_path / f"v{ending}"
    for command in (["embed", texts, "--model", tmp_path / "nowhere"], ["demo"]):
        result = run(*command, "--out", out)
        assert_one_line(result, "--out", repr(str(out)), f"the ending {ending} is not written", ".npy", "- for stdout")
    assert [p.name for p in tmp_path.iterdir()] == ["texts.txt"]


def test_from_stdin_to_stdout(checkpoint, texts, tmp_path):
    assert run_embed(texts, checkpoint, tmp_path / "v.npy").exit_code == 0
    result = run_embed("-", checkpoint, "-", stdin=texts.read_bytes())
    assert result.exit_code == 0, result.stderr
    assert result.stdout_bytes == (tmp_path / "v.npy").read_bytes()
    assert_one_line(run_embed("-", checkpoint, "-", stdin=b""), "TEXTS '-': the file is empty")
    assert_one_line(run_embed("-", checkpoint, "-", stdin=b"\xff"), "TEXTS '-': line 1 is not UTF-8")


def write_to_stdout():
    with vector_file("-") as file:
        file.allocate(1000, 100)


@pytest.mark.parametrize(("stream", "part"), [(None, "closed"), (SimpleNamespace(isatty=lambda: True), "a terminal")])
def test_a_stdout_that_cannot_serve(monkeypatch, stream, part):
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(InputError, match=f"--out '-': stdout is {part}"):
        write_to_stdout()


def test_a_stdout_that_takes_a_part_at_a_time(monkeypatch):
    """As a raw stream may."""
    taken = io.BytesIO()
    stream = SimpleNamespace(write=lambda chunk: taken.write(chunk[:1000]), flush=lambda: None)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=stream, isatty=lambda: False))
    write_to_stdout()
    taken.seek(0)
    np.testing.assert_array_equal(np.load(taken), np.zeros((1000, 100)))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_behind_stdout_is_one_error(monkeypatch):
    with open("/dev/full", "wb", buffering=0) as stream:
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=stream, isatty=lambda: False))
        with pytest.raises(InputError, match="--out '-': No space left on device"):
            write_to_stdout()


def test_a_closed_stdin(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="TEXTS '-': stdin is closed"):
        read_texts("-")


def test_records_are_lines_of_json(tmp_path):
    records = [{"text": "我們\u2028試試", "score": 0.25}, {"text": 'a "b"\n', "labels": [1, None]}]
    with record_file(str(tmp_path / "out.jsonl")) as file:
        for record in records:
            file.write(record)
        assert not (tmp_path / "out.jsonl").exists()
    written = (tmp_path / "out.jsonl").read_bytes().decode()
    assert [json.loads(line) for line in written.split("\n")[:-1]] == records
    assert "我們" in written


def test_records_end_in_jsonl_or_have_no_ending(tmp_path):
    expected = r"ending \.csv is not written; expected a file that ends in \.jsonl"
    with pytest.raises(InputError, match=expected), record_file(str(tmp_path / "out.csv")):
        raise AssertionError("opened")
    assert not list(tmp_path.iterdir())

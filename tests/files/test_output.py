"""Outputs: byte for byte, whole or not at all, gone on with; what is refused, what is left behind."""

import io
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.limits import room_for
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from safetensors.numpy import load_file

from erniem_fast.files import output as module
from erniem_fast.files import partial
from erniem_fast.files.errors import InputError
from erniem_fast.files.formats import (
    RECORD_FORMATS,
    TENSOR,
    VECTOR,
    VECTOR_FORMATS,
    JsonLines,
    Npy,
    check_ending,
)
from erniem_fast.files.output import open_output

JOB = {"INPUT": "texts.txt (12 bytes)", "--pooling": None, "labels": ["a", "b"]}
FIELDS = {"id": int, VECTOR: np.ndarray}
ENDINGS = tuple(VECTOR_FORMATS)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)


def make(
    out: Path | str, job: Mapping[str, Any] | None = JOB, restart: bool = False, say: Any = print, **more: Any
) -> Any:
    form = VECTOR_FORMATS[Path(out).suffix or ".npy"](more.get("fields", FIELDS), str(out))
    return open_output(str(out), form, job, restart, say)


def results(vectors: np.ndarray, first: int = 0) -> list[dict[str, Any]]:
    return [{"id": first + place, VECTOR: vector} for place, vector in enumerate(vectors)]


def load(path: Path) -> np.ndarray:
    match path.suffix:
        case ".npy":
            return np.load(path)
        case ".safetensors":
            return load_file(path)[TENSOR]
        case ".jsonl":
            rows = [json.loads(line)[VECTOR] for line in path.read_text().splitlines()]
        case _:
            rows = parquet.read_table(path)[VECTOR].to_pylist()
    return np.array(rows, dtype=np.float32)


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng().standard_normal((11, 5), dtype=np.float32)


class Stop(Exception):  # noqa: N818
    """The end of a run."""


@contextmanager
def stopping() -> Iterator[None]:
    with pytest.raises(Stop):
        yield


def begin(out: Path, vectors: np.ndarray, say: Any = print, error: BaseException | None = None, **more: Any) -> None:
    """Add vectors in two shards, and stop."""
    with make(out, say=say, **more) as output:
        output.begin({"dtype": "float32"})
        half = len(vectors) // 2
        output.add(results(vectors[:half]), {"cut": 1})
        output.add(results(vectors[half:], half), {"cut": 2})
        raise error or Stop


# What is written


@pytest.mark.parametrize("ending", [".npy", *(pytest.param(ending, marks=pytest.mark.slow) for ending in ENDINGS[1:])])
@given(
    rows=st.lists(st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3), min_size=1),
    stops=st.lists(st.integers(0, 4), max_size=3),
)  # fmt: skip
@settings(max_examples=20)
def test_vectors_come_back_to_the_bit_however_often_the_run_stops(
    tmp_path_factory: pytest.TempPathFactory, ending: str, rows: list[tuple[float, ...]], stops: list[int]
) -> None:
    vectors = np.array(rows, dtype=np.float32)
    folder = tmp_path_factory.mktemp("out")
    out = folder / f"v{ending}"

    def work(least: int, most: int) -> None:
        with make(out, say=lambda line: None) as output:
            assert output.records == output.shards == least
            output.begin({})
            for place in range(output.records, min(most, len(rows))):
                output.add(results(vectors[place : place + 1], place))
            if most < len(rows):
                output.file.seek(output.size)
                output.file.write(b"a shard that was under way")
                raise Stop

    done = 0
    for count in stops:
        if done + count < len(rows):
            with stopping():
                work(done, done + count)
            assert not out.exists()
            done += count
    work(done, len(rows))
    found = load(out)
    np.testing.assert_array_equal(found, vectors)
    assert (np.signbit(found) == np.signbit(vectors)).all()
    interrupted = out.read_bytes()
    work(0, len(rows))
    assert out.read_bytes() == interrupted
    assert [path.name for path in folder.iterdir()] == [out.name]


def test_the_file_is_what_numpy_writes(tmp_path: Path) -> None:
    for shape in ((1, 1), (12345, 3), (7, 100_000)):
        vectors = np.random.default_rng().standard_normal(shape, dtype=np.float32)
        with make(tmp_path / "ours.npy") as output:
            output.begin({})
            output.add(results(vectors))
        np.save(tmp_path / "theirs.npy", vectors)
        assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


@given(
    st.lists(
        st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.floats(allow_nan=False), st.lists(TEXT))), min_size=1
    )
)
@settings(max_examples=40)
def test_records_are_lines_of_json(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]) -> None:
    out = tmp_path_factory.mktemp("out") / "r.jsonl"
    with open_output(str(out), JsonLines(), JOB, False, print) as output:
        output.add(records)
        assert not out.exists()
    assert [json.loads(line) for line in out.read_bytes().decode().split("\n")[:-1]] == records


def test_records_of_parquet_have_their_types_whatever_the_first_ones_hold(tmp_path: Path) -> None:
    fields = {"id": str, "labels": [str], "spans": [{"text": str, "start": int, "relations": {"of": [{"p": float}]}}]}
    records = [
        {"id": None, "labels": [], "spans": None},
        {"id": "b", "labels": ["x", "y"], "spans": [{"text": "t", "start": 3}]},
        {"labels": None, "spans": [{"text": "u", "start": 4, "relations": {"of": [{"p": 0.1}]}}]},
    ]
    out = tmp_path / "r.parquet"
    with make(out, fields=fields) as output:
        output.begin({})
        for record in records:
            output.add([record])
    found = parquet.read_table(out)
    assert str(found.schema.field("spans").type).startswith("list<element: struct<text: string, start: int64, relat")
    assert found.to_pylist()[0] == {"id": None, "labels": [], "spans": None}
    assert found.to_pylist()[1]["spans"] == [{"text": "t", "start": 3, "relations": None}]
    assert found.to_pylist()[2]["spans"][0]["relations"] == {"of": [{"p": 0.1}]}
    assert parquet.ParquetFile(out).num_row_groups == 3


@pytest.mark.parametrize("name", ["x", 2**70, -(2**63) - 1])
def test_what_a_column_can_not_hold(tmp_path: Path, vectors: np.ndarray, name: object) -> None:
    out = tmp_path / "v.parquet"
    with (
        pytest.raises(InputError, match=r"--out .*'id' does not fit into one column of type int64 .*\.jsonl"),
        make(out) as output,
    ):
        output.add([{"id": name, VECTOR: vectors[0]}])
    assert not list(tmp_path.iterdir())


# Whole or not at all


@pytest.mark.parametrize("job", [JOB, None])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_file_is_replaced_at_the_end(
    tmp_path: Path, vectors: np.ndarray, ending: str, job: Mapping[str, Any] | None
) -> None:
    link, target = tmp_path / f"link{ending}", tmp_path / "elsewhere" / f"v{ending}"
    target.parent.mkdir()
    link.symlink_to(target)
    target.write_bytes(b"old")
    target.chmod(0o640)
    with make(link, job) as output:
        output.begin({})
        output.add(results(vectors))
        assert target.read_bytes() == b"old"
    assert link.is_symlink()
    np.testing.assert_array_equal(load(target), vectors)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert len(list(tmp_path.rglob("*"))) == 3


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path: Path, vectors: np.ndarray) -> None:
    (tmp_path / "other").touch()
    for job in (JOB, None):
        with make(tmp_path / "v.npy", job) as output:
            output.add(results(vectors))
            if job is not None:  # others may read the result, and nothing before
                assert stat.S_IMODE((tmp_path / "v.npy.partial").stat().st_mode) == 0o700
        assert (tmp_path / "v.npy").stat().st_mode == (tmp_path / "other").stat().st_mode
        (tmp_path / "v.npy").unlink()


@pytest.mark.parametrize("job", [JOB, None])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, InputError])
def test_an_error_before_the_first_result_leaves_nothing_behind(
    tmp_path: Path, error: type[BaseException], job: Mapping[str, Any] | None
) -> None:
    (tmp_path / "v.npy").write_bytes(b"old")

    def work() -> None:
        with make(tmp_path / "v.npy", job) as output:
            output.begin({})
            raise error

    with pytest.raises(error):
        work()
    assert [p.name for p in tmp_path.iterdir()] == ["v.npy"]
    assert (tmp_path / "v.npy").read_bytes() == b"old"


def test_without_a_job_nothing_is_kept(tmp_path: Path, vectors: np.ndarray) -> None:
    with stopping():
        begin(tmp_path / "v.npy", vectors, job=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("job", [JOB, None])
@pytest.mark.parametrize("where", ["missing/v.npy", "file/v.npy", "folder.npy", "x" * 300 + ".npy"])
def test_outputs_that_can_not_be_written(tmp_path: Path, where: str, job: Mapping[str, Any] | None) -> None:
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"--out '.*{where}': .*; expected the path"), make(tmp_path / where, job):
        raise AssertionError("opened")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
@pytest.mark.parametrize("job", [JOB, None])
def test_a_folder_that_is_read_only(tmp_path: Path, job: Mapping[str, Any] | None) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"), make(tmp_path / "v.npy", job):
        raise AssertionError("opened")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("ending", [".csv", ".txt", ".npz", ".pt", ".json", ".jsonl.gz"])
def test_endings_that_are_not_written(ending: str) -> None:
    for formats in (VECTOR_FORMATS, RECORD_FORMATS):
        with pytest.raises(InputError, match=r"--out .* is not written; expected a file that ends in \.npy|\.jsonl"):
            check_ending(f"out{ending}", formats)
    assert [check_ending(out, VECTOR_FORMATS) for out in ("v", "v.NPY", "-", "v.jsonl")] == [".npy"] * 3 + [".jsonl"]


# Gone on with


@pytest.mark.parametrize("error", [Stop(), KeyboardInterrupt(), SystemExit(143)])
def test_a_run_that_stops_says_what_is_kept_and_the_next_goes_on(
    tmp_path: Path, vectors: np.ndarray, error: BaseException
) -> None:
    out, said = tmp_path / "v.npy", []
    with pytest.raises(type(error)):
        begin(out, vectors, said.append, error)
    folder = f"{out}.partial"
    assert said == [f"Stopped: 11 records are kept in {folder}; the same command goes on behind them"]
    with make(out, say=said.append) as output:
        assert (output.records, output.shards, output.notes["cut"]) == (11, 2, 3)
        assert output.begin({"dtype": "bfloat16"}) == {"dtype": "float32"}  # as the first run settled
        output.add(results(vectors, 11), {"cut": 1})
    assert said[1:] == [f"Going on behind the 11 records in {folder}"]
    assert output.notes["cut"] == 4
    np.testing.assert_array_equal(np.load(out), np.concatenate([vectors, vectors]))
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (JOB | {"--pooling": "cls"}, r"\(--pooling was None, is 'cls'\)"),
        ({"INPUT": JOB["INPUT"], "labels": ["a", "b"], "--pooling": None, "--new": 1}, r"\(--new was None, is 1\)"),
        ({"INPUT": JOB["INPUT"], "--pooling": None}, r"\(labels was \['a', 'b'\], is None\)"),
        (JOB | {"INPUT": "other.txt"}, r"\(INPUT was 'texts.txt \(12 bytes\)', is 'other.txt'\)"),
    ],
)
def test_another_job_is_refused_until_it_restarts(
    tmp_path: Path, vectors: np.ndarray, job: Mapping[str, Any], message: str
) -> None:
    out = tmp_path / "v.npy"
    with stopping():
        begin(out, vectors)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with (
        pytest.raises(InputError, match=f"unfinished results of another job {message}.*--restart, or that"),
        make(out, job),
    ):
        raise AssertionError("opened")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with make(out, job, restart=True) as output:
        assert (output.records, output.settings) == (0, {})
        output.add(results(vectors[:2]))
    assert load(out).shape == (2, 5)


def test_another_run_on_the_same_output_is_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    out = tmp_path / "v.npy"
    (tmp_path / "link.npy").symlink_to(out)
    with make(out) as output:
        output.begin({})
        for name in (out, tmp_path / "link.npy"):
            for restart in (False, True):
                with pytest.raises(InputError, match="another run is writing it"), make(name, restart=restart):
                    raise AssertionError("opened")
        output.add(results(vectors))
    np.testing.assert_array_equal(np.load(out), vectors)


def test_a_run_that_was_killed_behind_its_last_step_is_not_repeated(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ending, rewritten in ((".npy", False), (".parquet", False), (".npy", True)):
        out, said = tmp_path / f"v{ending}", []

        def killed(folder: Path) -> None:
            raise Stop

        with monkeypatch.context() as patch:
            patch.setattr(module, "drop_manifest", killed)
            with stopping(), make(out) as output:
                output.begin({})
                output.add(results(vectors))
        np.testing.assert_array_equal(load(out), vectors)
        assert out.with_name(f"{out.name}.partial").exists()
        if rewritten:
            out.write_bytes(out.read_bytes()[::-1])
        with make(out, say=said.append) as output:
            assert output.placed is not rewritten
            if rewritten:
                output.add(results(vectors))
        assert said == ([] if rewritten else [f"{out} is complete already"])
        np.testing.assert_array_equal(load(out), vectors)
        assert os.listdir(tmp_path) == [out.name]
        out.unlink()


def test_a_run_begins_while_another_removes_its_folder(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, lock, removed = tmp_path / "v.npy", partial.lock, []

    def late(descriptor: int) -> None:
        if not removed:
            removed.append(True)
            partial._remove(tmp_path / "v.npy.partial")
        lock(descriptor)

    monkeypatch.setattr(partial, "lock", late)
    with make(out) as output:
        output.begin({})
        with pytest.raises(InputError, match="another run is writing it"), make(out):
            raise AssertionError("opened")
        output.add(results(vectors))
    assert removed
    np.testing.assert_array_equal(np.load(out), vectors)


def test_folders_of_others_stay_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "v.npy.partial"
    folder.mkdir()
    (folder / "data").write_bytes(b"mine")
    (folder / "notes.txt").write_bytes(b"mine")
    with (
        pytest.raises(InputError, match=r"needs the folder .*v\.npy\.partial, which holds 'notes\.txt'"),
        make(tmp_path / "v.npy"),
    ):
        raise AssertionError("opened")
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_manifest_that_can_not_be_read(tmp_path: Path, vectors: np.ndarray, content: bytes) -> None:
    out = tmp_path / "v.npy"
    with stopping():
        begin(out, vectors)
    (tmp_path / "v.npy.partial" / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json can't be read; expected .*--restart"), make(out):
        raise AssertionError("opened")


def test_another_version_is_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    out = tmp_path / "v.npy"
    with stopping():
        begin(out, vectors)
    manifest = tmp_path / "v.npy.partial" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 0}))
    with pytest.raises(InputError, match="was written by another version"), make(out):
        raise AssertionError("opened")


def test_data_that_is_shorter_than_the_manifest_says_begins_anew(tmp_path: Path, vectors: np.ndarray) -> None:
    out = tmp_path / "v.npy"
    with stopping():
        begin(out, vectors)
    os.truncate(tmp_path / "v.npy.partial" / "data", 150)
    with make(out) as output:
        assert output.records == 0
        output.add(results(vectors))
    np.testing.assert_array_equal(np.load(out), vectors)


def test_results_that_were_added_are_kept_from_time_to_time(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "v.npy.partial" / "manifest.json"
    with stopping(), make(tmp_path / "v.npy") as output:
        output.begin({})
        output.add(results(vectors))
        assert json.loads(manifest.read_text())["records"] == 0
        monkeypatch.setattr(module, "SECONDS_UNKEPT", 0)
        output.add(results(vectors))
        assert json.loads(manifest.read_text())["records"] == 22
        raise Stop


# Disks that are full


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_full_disk_keeps_what_fits(tmp_path: Path, ending: str) -> None:
    vectors = np.random.default_rng().standard_normal((60, 100), dtype=np.float32)
    out = tmp_path / f"v{ending}"

    def work() -> None:
        with make(out) as output:
            output.begin({})
            for start in range(output.records, 60, 10):
                output.add(results(vectors[start : start + 10], start))

    with (
        room_for(22_000),
        pytest.raises(InputError, match=r"--out .*: File too large; expected room .*; \d+ records are"),
    ):
        work()
    manifest = json.loads((tmp_path / f"v{ending}.partial" / "manifest.json").read_text())
    assert 0 < manifest["records"] < 60
    work()
    np.testing.assert_array_equal(load(out), vectors)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_disk_that_is_full_at_the_last_step(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "v.parquet"

    def work() -> None:
        with make(out) as output:
            output.begin({})
            if not output.records:
                output.add(results(vectors))

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(output_form := type(VECTOR_FORMATS[".parquet"](FIELDS, "")), "complete", fail)
        with pytest.raises(
            InputError, match="No space left on device; expected room for the results; 11 records are kept"
        ):
            work()
    assert output_form.complete is not fail
    work()
    np.testing.assert_array_equal(load(out), vectors)


@pytest.mark.parametrize("job", [JOB, None])
def test_a_disk_that_is_full_from_the_beginning(
    tmp_path: Path, vectors: np.ndarray, job: Mapping[str, Any] | None
) -> None:
    def work() -> None:
        with make(tmp_path / "v.npy", job) as output:
            output.begin({})
            output.add(results(vectors))

    with room_for(10), pytest.raises(InputError, match=r"File too large; expected room for the results$"):
        work()
    assert not list(tmp_path.iterdir())


# stdout


def write_to_stdout(vectors: np.ndarray) -> None:
    with make("-") as output:
        output.add(results(vectors))


@pytest.mark.parametrize(("stream", "part"), [(None, "closed"), (SimpleNamespace(isatty=lambda: True), "a terminal")])
def test_a_stdout_that_cannot_serve(
    monkeypatch: pytest.MonkeyPatch, vectors: np.ndarray, stream: Any, part: str
) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(InputError, match=f"--out '-': stdout is {part}"):
        write_to_stdout(vectors)


def test_a_stdout_that_takes_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a raw stream may."""
    taken = io.BytesIO()
    stream = SimpleNamespace(write=lambda chunk: taken.write(chunk[:1000]), flush=lambda: None)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=stream, isatty=lambda: False))
    vectors = np.random.default_rng().standard_normal((1000, 100), dtype=np.float32)
    write_to_stdout(vectors)
    taken.seek(0)
    np.testing.assert_array_equal(np.load(taken), vectors)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_behind_stdout_is_one_error(monkeypatch: pytest.MonkeyPatch, vectors: np.ndarray) -> None:
    with open("/dev/full", "wb", buffering=0) as stream:
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=stream, isatty=lambda: False))
        with pytest.raises(InputError, match="--out '-': No space left on device"):
            write_to_stdout(vectors)


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no /dev")
def test_a_device_is_not_replaced() -> None:
    with pytest.raises(InputError, match="Not a regular file"), open_output("/dev/null", Npy(), JOB, False, print):
        raise AssertionError("opened")
    assert not os.path.isfile("/dev/null")


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path: Path, vectors: np.ndarray) -> None:
    name = ".erniem-fast-{}.tmp"
    others = {name.format("readme"), name.format("0" * 16) + ".npy", "x" + name.format("0" * 16), "other.tmp"}
    for other in others:
        (tmp_path / other).touch()
    folder = tmp_path / name.format("f" * 16)
    folder.mkdir()
    link = tmp_path / name.format("e" * 16)
    link.symlink_to(tmp_path / "other.tmp")
    (tmp_path / name.format("0" * 16)).write_bytes(b"left by a killed run")
    with make(tmp_path / "first.npy", None) as first:
        first.add(results(vectors))
        # The first one runs, and keeps its file.
        with make(tmp_path / "second.npy", None) as second:
            second.add(results(vectors))
    assert {p.name for p in tmp_path.iterdir()} == others | {folder.name, link.name, "first.npy", "second.npy"}

"""Records of every format: what is read, what is skipped, what is refused and where."""

import csv
import gzip
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from erniem_fast.files import records as module
from erniem_fast.files import source as source_module
from erniem_fast.files.errors import InputError
from erniem_fast.files.records import count_records, read_records
from erniem_fast.files.source import open_source

TEXTS = ["Tom", "", 'Grüße, "Welt"', "我們\u2028試試", " spaces ", "a\u0085b\x0b", "🙂", "x" * 5000]
FORMATS = ("jsonl", "csv", "parquet")
# No surrogates, which UTF-8 has not, and no NUL, which is refused.
ANY_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
LINE = st.text(st.characters(exclude_characters="\0\n\r", exclude_categories=["Cs"]), max_size=20)


def write(path: Path, rows: Sequence[dict[str, Any]], group: int = 3) -> Path:
    """Write rows of equal keys in the format that the ending says."""
    kind, zipped = (path.suffixes[-2], True) if path.suffix == ".gz" else (path.suffix, False)
    buffer = io.BytesIO()
    if kind == ".parquet":
        parquet.write_table(pa.Table.from_pylist(list(rows)), buffer, row_group_size=group)
    elif kind == ".jsonl":
        buffer.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    elif kind == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        buffer.write(text.getvalue().encode())
    else:
        buffer.write("\n".join(row["text"] for row in rows).encode())
    path.write_bytes(gzip.compress(buffer.getvalue()) if zipped else buffer.getvalue())
    return path


def read(path: Path | str, *columns: str, name: str = "id", skip: int = 0, kind: str | None = None) -> list[Any]:
    with open_source(str(path), kind) as source:
        return [(*texts, kept) for texts, kept in read_records(source, columns or ("text",), name, skip)]


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("kind", ["txt", *FORMATS])
def test_every_format_gives_the_same_texts(tmp_path: Path, kind: str, zipped: str) -> None:
    path = write(tmp_path / f"t.{kind}{zipped}", [{"text": text} for text in TEXTS])
    for skip in (0, 1, 4, len(TEXTS)):
        assert read(path, skip=skip) == [(text, {}) for text in TEXTS[skip:]]
    with open_source(str(path)) as source:
        assert count_records(source, ("text",)) == len(TEXTS)


@pytest.mark.parametrize("kind", FORMATS)
@given(rows=st.lists(st.tuples(ANY_TEXT, ANY_TEXT, ANY_TEXT), min_size=1, max_size=8), data=st.data())
@settings(max_examples=25)
def test_any_texts_come_back_with_line_ends_and_quotes(
    tmp_path_factory: pytest.TempPathFactory, kind: str, rows: list[tuple[str, str, str]], data: st.DataObject
) -> None:
    names = ("context", "na,\"me'\n", "question")
    path = write(tmp_path_factory.mktemp("t") / f"t.{kind}", [dict(zip(names, row, strict=True)) for row in rows])
    skip = data.draw(st.integers(0, len(rows)))
    expected = [(question, context, {names[1]: name}) for context, name, question in rows[skip:]]
    assert read(path, "question", "context", name=names[1], skip=skip) == expected


@given(lines=st.lists(LINE, min_size=1), end=st.sampled_from(["\n", "\r\n"]), last=st.booleans(), mark=st.booleans())
@settings(max_examples=40)
def test_lines_of_any_text(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str, last: bool, mark: bool
) -> None:
    if not (last or lines[-1]):
        lines.append("x")  # a file that ends in an empty line has an end behind it
    if not mark:
        lines[0] = lines[0].lstrip("\ufeff")
    path = tmp_path_factory.mktemp("t") / "t"
    path.write_bytes((end.join(lines) + end * last).encode("utf-8-sig" if mark else "utf-8"))
    assert [text for text, _ in read(path)] == lines


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_blocks_end_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(source_module, "BLOCK", block)
    path = write(tmp_path / "t.txt", [{"text": text[:20]} for text in TEXTS])
    assert [text for text, _ in read(path)] == [text[:20] for text in TEXTS]
    path.write_bytes(b"ab\nc\xffd\n")
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        read(path)


def test_names_of_records(tmp_path: Path) -> None:
    rows = [{"id": 7, "text": "a"}, {"id": "x", "text": "b"}, {"text": "c"}, {"id": None, "text": "d", "more": [1]}]
    (tmp_path / "t.jsonl").write_text("\n\n  \n".join(map(json.dumps, rows)))  # blank lines are no records
    assert [kept for _, kept in read(tmp_path / "t.jsonl")] == [{"id": 7}, {"id": "x"}, {}, {"id": None}]
    assert [kept for _, kept in read(tmp_path / "t.jsonl", name="absent")] == [{}] * 4
    assert read(write(tmp_path / "t.csv", [{"id": 7, "text": "a"}])) == [("a", {"id": "7"})]
    assert read(write(tmp_path / "t.parquet", [{"id": 7, "text": "a"}])) == [("a", {"id": 7})]


def test_nulls_are_empty_texts(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": None}, {"text": ""}]
    for kind in ("jsonl", "parquet"):
        assert [text for text, _ in read(write(tmp_path / f"t.{kind}", rows))] == ["a", "", ""]


def test_other_strings_of_arrow(tmp_path: Path) -> None:
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        column = pa.array(TEXTS, pa.string()).cast(kind)
        parquet.write_table(pa.table({"text": column}), tmp_path / "t.parquet")
        assert [text for text, _ in read(tmp_path / "t.parquet")] == TEXTS


@pytest.mark.parametrize("kind", ["txt", *(pytest.param(kind, marks=pytest.mark.slow) for kind in FORMATS)])
def test_a_text_of_ten_megabytes(tmp_path: Path, kind: str) -> None:
    texts = ["before", "ab\u00e9 " * 2_500_000, "behind"]
    path = write(tmp_path / f"t.{kind}", [{"text": text} for text in texts])
    assert [len(text) for text, _ in read(path)] == [6, 10_000_000, 6]


BAD = {
    "jsonl": [
        (b'{"text": "a"}\n{"text": 1}\n', "line 2 has 'text' of type int, not a string"),
        (b'{"text": "a"}\n\n{"text": ["a"]}\n', "line 3 has 'text' of type list"),
        (b'{"text": "a"}\n{"txt": "a"}', "line 2 has no 'text': it has 'txt'"),
        (b'{"text": "a"}\n[1]', "line 2 is not an object, but of type list"),
        (b'{"text": "a"}\n{"text": "a"', "line 2 is not JSON"),
        (b"[" * 200_000, "line 1 is not JSON"),
        (b'{"text": "a\\u0000"}', "line 1 holds a NUL character"),
        (b'{"text": "a\\ud83d"}', "line 1 holds a lone surrogate, '\\ud83d'"),
        (b'{"text": "a", "id": "\\ud83d"}', "line 1 holds a lone surrogate"),
        (b'{"text": "a", "id": [1]}', "line 1 has 'id' (--id-column) of type list, not a string or an integer"),
        (b'{"text": "a", "id": true}', "line 1 has 'id' (--id-column) of type bool"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2 is not UTF-8"),
    ],
    "csv": [
        (b"a,b\n1,2\n", "has no column 'text': its columns are 'a', 'b'"),
        (b"text;id\na;1\n", "has no column 'text': its columns are 'text;id'"),
        (b"text,text\na,b\n", "has more than one column 'text'"),
        (b'text,id\n"a\nb",1\nc\n', "line 4 has 1 fields, the first line 2"),
        (b'text\n"a\n', "line 2 is not CSV"),
        (b'text\n"a"b\n', "line 2 is not CSV"),
        (b"text\na\0b\n", "line 2 holds a NUL character"),
        (b"text\na\n\xff\n", "line 3 is not UTF-8"),
        (b"", "has no column 'text': its columns are none"),
    ],
    "txt": [
        (b"good\nalso\nbad \xff\xfe\n", "line 3 is not UTF-8"),
        ("Grüße".encode("utf-16"), "line 1 is not UTF-8"),
        (b"good\nbad\0\n", "line 2 holds a NUL character"),
    ],
    "parquet": [(b"", "can't be read"), (b"PAR1" + b"\xff" * 100 + b"PAR1", "can't be read"), (b"text\n" * 9, "can't")],
}


@pytest.mark.parametrize(
    ("kind", "content", "message"), [(kind, *case) for kind, cases in BAD.items() for case in cases]
)
def test_what_is_refused_and_where(tmp_path: Path, kind: str, content: bytes, message: str) -> None:
    for zipped in (False, True):
        path = tmp_path / (f"t.{kind}.gz" if zipped else f"t.{kind}")
        path.write_bytes(gzip.compress(content) if zipped else content)
        with pytest.raises(InputError) as error:
            read(path)
        assert str(error.value).startswith(f"INPUT {str(path)!r}: ")
        assert message in str(error.value)
        assert "; expected " in str(error.value)


def test_columns_of_parquet_that_hold_no_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", [{"text": 1, "id": 1.5, "good": "a"}])
    for columns, message in ((["text"], "a column 'text' of type int64"), (["gone"], "no column 'gone'")):
        with pytest.raises(InputError, match=message):
            read(path, *columns)
    with pytest.raises(InputError, match=r"row 1 has 'id' \(--id-column\) of type float"):
        read(path, "good")
    with pytest.raises(InputError, match="row 2 holds a NUL character"):
        read(write(path, [{"text": "a"}, {"text": "\0"}]))


def test_parquet_that_is_not_utf_8(tmp_path: Path) -> None:
    column = pa.array([b"a", b"\xff"]).view(pa.string())
    parquet.write_table(pa.table({"text": column}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="row 1 or one of the next is not UTF-8"):
        read(tmp_path / "t.parquet")


@pytest.mark.parametrize("cut", [5, 15, -3, -10])
def test_gzip_that_is_cut_or_none(tmp_path: Path, cut: int) -> None:
    content = gzip.compress(os.urandom(2000).hex().encode())
    (tmp_path / "t.txt.gz").write_bytes(content[:cut])
    with pytest.raises(InputError, match="is no whole gzip file"):
        read(tmp_path / "t.txt.gz")
    (tmp_path / "t.txt.gz").write_bytes(b"plain text")
    with pytest.raises(InputError, match="is no whole gzip file"):
        read(tmp_path / "t.txt.gz")


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "LONGEST_LINE", 1000)
    monkeypatch.setattr(source_module, "BLOCK", 64)
    (tmp_path / "t").write_bytes(b"short\n" + b"x" * 999 + b"\nlast")
    assert len(read(tmp_path / "t")) == 3
    (tmp_path / "t").write_bytes(b"short\n" + b"x" * 2000)
    with pytest.raises(InputError, match="line 2 has more than 1,000 bytes"):
        read(tmp_path / "t")


def test_a_csv_field_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_LINE", 1000)
    (tmp_path / "t.csv").write_bytes(b'text\na\n"b\n' + b"c\n" * 1000)
    with pytest.raises(InputError, match=r"line 3 is not CSV \(field larger"):
        read(tmp_path / "t.csv")


def test_texts_alone_have_one_column(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"a\n")
    for columns in (["question", "context"], ["text", "pair"], ["body"]):
        with pytest.raises(InputError, match=r"has no column '(question|pair|body)': a line is one text"):
            read(tmp_path / "t.txt", *columns)


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("more\n")


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    other.rename(path)


@pytest.mark.parametrize("change", [append, touch, replace, Path.unlink, lambda path: os.truncate(path, 1)])
def test_a_file_that_changes(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = write(tmp_path / "t.txt", [{"text": text} for text in TEXTS])
    with open_source(str(path)) as source:
        list(read_records(source, ("text",)))
        source.check_unchanged()
        change(path)
        with pytest.raises(InputError, match="changed while it was read, so nothing was put in place"):
            source.check_unchanged()


def test_a_line_that_is_still_being_written_is_a_change(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"text": "a"}\n')
    with open_source(str(path)) as source:
        with path.open("ab") as file:
            file.write(b'{"text": "b')
        with pytest.raises(InputError, match="changed while it was read"):
            list(read_records(source, ("text",)))


def test_a_file_is_known_again_until_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "t.txt", [{"text": text} for text in TEXTS])
    (tmp_path / "link.txt").symlink_to(path)
    identities = []
    for name in (path, tmp_path / "link.txt"):
        with open_source(str(name)) as source:
            identities.append(source.identity)
    touch(path)
    with open_source(str(path)) as source:
        identities.append(source.identity)
    assert identities[0] == identities[1] != identities[2]


def test_large_files_are_not_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "QUICK", 10)
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{"text"\n{"text": "b"}')
    with open_source(str(path)) as source:
        assert count_records(source, ("text",)) == 4  # blank and bad ones, too
        monkeypatch.setattr(source_module, "COUNTED", 10)
        assert count_records(source, ("text",)) is None
    with open_source(str(write(tmp_path / "t.csv", [{"text": "a\nb"}] * 9))) as source:
        assert count_records(source, ("text",)) is None
    with open_source(str(write(tmp_path / "t.parquet", [{"text": "a"}] * 9))) as source:
        assert count_records(source, ("text",)) == 9


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, content in ((None, b"a\nb"), ("jsonl", b'{"text": "a"}\n{"text": "b"}'), ("csv", b"text\na\nb\n")):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), fileno=io.BytesIO().fileno))
        with open_source("-", kind) as source:
            assert source.identity is None
            assert count_records(source, ("text",)) is None
            assert [record.texts for record in read_records(source, ("text",))] == [("a",), ("b",)]
    with pytest.raises(InputError, match="is a pipe, of which no Parquet is read"):
        read("-", kind="parquet")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="INPUT '-': stdin is closed"):
        read("-")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_with_a_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDWR)
    os.write(reader, b"a\nb\n")
    with open_source(str(tmp_path / "pipe")) as source:
        records = read_records(source, ("text",))
        assert source.identity is None
        assert [next(records).texts for _ in range(2)] == [("a",), ("b",)]
    os.close(reader)


@pytest.mark.parametrize("ending", [".json", ".tsv", ".md", ".npy", ".zip", ".json.gz"])
def test_files_of_other_kinds(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"t{ending}"
    path.write_bytes(b"a\n")
    with pytest.raises(InputError, match=rf"the ending {ending.removesuffix('.gz')} is not read; expected one of .txt"):
        read(path)
    if not ending.endswith(".gz"):
        assert read(path, kind="txt") == [("a", {})]


@pytest.mark.parametrize(
    ("name", "part"), [("gone.txt", "No such file"), (".", "Is a directory"), ("a\0b", "null byte")]
)
def test_files_that_can_not_be_opened(tmp_path: Path, name: str, part: str) -> None:
    with pytest.raises(InputError, match=f"INPUT .*: .*{part}.*; expected a UTF-8 text file"):
        read(f"{tmp_path}/{name}")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t.parquet", [{"text": "a"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"needs the package pyarrow.*pip install 'erniem_fast\[files\]'"):
        read(path)

"""Rows of files with all their columns, and bad lines."""

import json
from pathlib import Path

import pytest

from erniem_fast.files.errors import InputError
from erniem_fast.files.rows import ROWS, BadLines, read_rows
from erniem_fast.files.source import open_source

GOOD = [
    {"text": 'a, "b"\nc', "label": 1},
    {"text": "猫\u2028", "label": [1, "x"], "more": None},
    {"text": "", "label": 0.5},
]


def rows(path: Path, skip: bool = False) -> tuple[list[tuple[int, dict]], BadLines]:
    bad = BadLines(skip)
    with open_source(str(path), accepted=ROWS, what="TRAIN") as source:
        return [(number, dict(row)) for number, row in read_rows(source, bad)], bad


def test_json_lines_keep_every_value(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in GOOD), encoding="utf-8")
    assert rows(path)[0] == list(zip((1, 3, 5), GOOD, strict=True))


def test_tables(tmp_path: Path) -> None:
    csv, tsv = tmp_path / "a.csv", tmp_path / "a.tsv"
    csv.write_text('text,label\n"a\nb",1\n\n"say ""hi""",2\n', encoding="utf-8")
    tsv.write_text('text\tlabel\r\nsay "hi\t1\r\n', encoding="utf-8")
    assert rows(csv)[0] == [(2, {"text": "a\nb", "label": "1"}), (5, {"text": 'say "hi"', "label": "2"})]
    assert rows(tsv)[0] == [(2, {"text": 'say "hi', "label": "1"})]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    found = [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": []}]
    parquet.write_table(pyarrow.Table.from_pylist(found), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet")[0] == [(1, found[0]), (2, found[1])]


BAD = {
    "a.jsonl": ('{"a": 1}\n{\n[1]\n{"a": 2}\n', 2, "line 2 is not JSON", [{"a": 1}, {"a": 2}]),
    "a.csv": ('a,b\n1,2\n3\n"4"x,5\n6,7\n', 2, "line 3 has 1 fields, the first line 2",
              [{"a": "1", "b": "2"}, {"a": "6", "b": "7"}]),
    "a.tsv": ("a\tb\n1\t2\t3\n4\t5\n", 1, "line 2 has 3 fields, the first line 2", [{"a": "4", "b": "5"}]),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_bad_lines_are_an_error_or_are_counted(name: str, tmp_path: Path) -> None:
    content, count, problem, good = BAD[name]
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=f"TRAIN '.*{name}': {problem}.*; expected UTF-8"):
        rows(path)
    found, bad = rows(path, skip=True)
    assert [row for _, row in found] == good
    assert bad.count == count
    assert problem in str(bad.first)


def test_each_line_behind_a_quote_without_an_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,2\n"3,4\n5,6\n7,8\n')
    with pytest.raises(InputError, match="line 3 is not CSV"):
        rows(path)
    found, bad = rows(path, skip=True)
    assert [row for _, row in found] == [{"a": "1", "b": "2"}]
    assert bad.count == 3
    path.write_text('a,b\n1,2\n"3,4\n5","x"y\n7,8\n')
    found, bad = rows(path, skip=True)
    assert [row for _, row in found] == [{"a": "1", "b": "2"}, {"a": "7", "b": "8"}]
    assert bad.count == 2


def test_what_cannot_be_skipped(tmp_path: Path) -> None:
    """A file that is no text, or whose first line names no columns: the rest would be read wrongly."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n1,2\n\xff,3\n4,5\n")
    with pytest.raises(InputError, match="line 3 is not UTF-8"):
        rows(path, skip=True)
    path.write_text('"a"x,b\n1,2\n3,4\n')
    with pytest.raises(InputError, match="line 1 is not CSV"):
        rows(path, skip=True)
    path.write_text("a,a\n1,2\n")
    with pytest.raises(InputError, match="two columns of one name"):
        rows(path)
    with pytest.raises(InputError, match=r"TRAIN '.*a\.xlsx': the ending \.xlsx is not read; expected one of \.jsonl"):
        rows(tmp_path / "a.xlsx")

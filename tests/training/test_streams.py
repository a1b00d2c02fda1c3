"""Streams of texts and pairs: every line once an epoch on one rank, resumable, bad lines by file and number."""

import gzip
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniem_fast.files.errors import InputError
from erniem_fast.training.streams import MONOLINGUAL, PARALLEL, Columns, Sample, Stream, open_readers


def write(folder: Path, sizes: Sequence[int]) -> list[str]:
    """Files of so many pairs, in each form in turn, with blank lines."""
    paths = []
    for place, size in enumerate(sizes):
        rows = [(f"a{place}.{row}", f"b{place}.{row}") for row in range(size)]
        form = place % 3
        name = str(folder / f"{place}{('.tsv', '.jsonl', '.tsv.gz')[form]}")
        if form == 1:
            text = "\n".join(json.dumps({"source": one, "target": other}) for one, other in rows)
        else:
            text = "\n\n".join(f"{one}\t{other}" for one, other in rows) + "\r\n"
        with gzip.open(name, "wt", encoding="utf-8") if form == 2 else open(name, "w", encoding="utf-8") as file:
            file.write(text)
        paths.append(name)
    return paths


def take(stream: Stream, number: int) -> list[Sample]:
    return list(islice(stream, number))


@settings(max_examples=25)
@given(data=st.data())
def test_each_line_comes_once_an_epoch_on_one_rank(tmp_path: Path, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=4).filter(sum))
    world_size = data.draw(st.integers(1, min(3, sum(sizes))))
    seed, buffer_size = data.draw(st.integers(0, 2**20)), data.draw(st.integers(1, 40))
    readers = open_readers(write(tmp_path, sizes), PARALLEL)
    expected = sorted((f"a{file}.{row}", f"b{file}.{row}") for file, size in enumerate(sizes) for row in range(size))
    epochs: list[list[tuple[str, ...]]] = [[], [], []]
    for rank in range(world_size):
        stream = Stream(readers, seed=seed, buffer_size=buffer_size, rank=rank, world_size=world_size)
        samples = []
        for sample in stream:
            if sample.epoch == 3:
                break
            samples.append(sample)
            epochs[sample.epoch].append(sample.texts)
        # Any sample's position gives the same stream from there on.
        start = data.draw(st.integers(0, len(samples) - 1))
        again = Stream(readers, seed=seed, buffer_size=buffer_size, rank=rank, world_size=world_size)
        again.load_state_dict(json.loads(json.dumps(stream.state_dict(samples[start]))))
        assert take(again, len(samples) - start) == samples[start:]
    assert [sorted(epoch) for epoch in epochs] == [expected] * 3


def test_the_order_changes_with_the_epoch_and_the_seed_and_a_buffer_of_one_keeps_it(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [60])
    texts = [sample.texts for sample in take(Stream(open_readers([path], PARALLEL), buffer_size=1), 120)]
    assert texts == [(f"a0.{row}", f"b0.{row}") for row in [*range(60), *range(60)]]
    orders = [
        [sample.texts for sample in take(Stream(open_readers([path], PARALLEL), seed=seed, buffer_size=30), 120)]
        for seed in (1, 2, 1)
    ]
    assert orders[0] == orders[2]
    assert len({tuple(part) for order in orders for part in (order[:60], order[60:], texts[:60])}) == 5


def test_files_are_read_side_by_side(tmp_path: Path) -> None:
    """A short file isn't over while the long one has just begun."""
    readers = open_readers(write(tmp_path, [300, 0, 0, 60]), PARALLEL)
    order = [sample.texts[0].startswith("a3") for sample in take(Stream(readers, buffer_size=1), 360)]
    assert sum(order[:180]) > 12
    assert sum(order[180:]) > 12


def test_nothing_is_read_that_is_not_needed_yet(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(f"{'text ' * 300}{row}" for row in range(4000)) + "\n\0")
    stream = Stream(open_readers([path], MONOLINGUAL), buffer_size=10)
    assert len(take(stream, 100)) == 100
    with pytest.raises(InputError, match=r"texts.txt': line 4001 holds a NUL"):
        take(stream, 4000)


def test_languages_and_columns(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("Hund\tdog\tde\ten\nKatze\tcat\n")
    (tmp_path / "b.jsonl").write_text(
        '{"translation": {"de": "Maus", "en": "mouse"}, "source_language": "de", "target_language": "en"}\n'
    )
    (tmp_path / "c.tsv").write_text("Hund\tde\n")
    (first, second) = take(Stream(open_readers([tmp_path / "a.tsv"], PARALLEL), buffer_size=1), 2)
    assert (first.texts, first.languages) == (("Hund", "dog"), ("de", "en"))
    assert (second.texts, second.languages) == (("Katze", "cat"), (None, None))
    nested = Columns(("translation.de", "translation.en"), PARALLEL.languages)
    (third,) = take(Stream(open_readers([tmp_path / "b.jsonl"], nested)), 1)
    assert (third.texts, third.languages) == (("Maus", "mouse"), ("de", "en"))
    (fourth,) = take(Stream(open_readers([tmp_path / "c.tsv"], MONOLINGUAL)), 1)
    assert (fourth.texts, fourth.languages, fourth.place) == (("Hund",), ("de",), f"{tmp_path / 'c.tsv'}:1")


BAD = {
    "one column": ("tsv", "a", "line 2 has 1 columns, not 2, or 4 with languages"),
    "three columns": ("tsv", "a\tb\tc", "line 2 has 3 columns"),
    "an empty text": ("tsv", "a\t ", "line 2 has an empty text"),
    "a NUL": ("tsv", "a\tb\0", "line 2 holds a NUL character"),
    "no JSON": ("jsonl", "{", "line 2 is not JSON"),
    "no object": ("jsonl", "[1]", "line 2 is not an object, but of type list"),
    "no column": ("jsonl", '{"source": "a"}', "line 2 has no 'target': it has 'source'"),
    "no text": ("jsonl", '{"source": "a", "target": 3}', "line 2 has 'target' of type int"),
    "null": ("jsonl", '{"source": "a", "target": null}', "line 2 has an empty text"),
    "half a character": ("jsonl", '{"source": "a", "target": "\\ud800é"}', "line 2 holds a lone surrogate"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lines_are_named_or_counted(tmp_path: Path, case: str) -> None:
    ending, line, message = BAD[case]
    good = {"tsv": "Hund\tdog", "jsonl": '{"source": "Hund", "target": "dog"}'}[ending]
    path = tmp_path / f"pairs.{ending}"
    path.write_text(f"{good}\n{line}\n{good}\n{line}\n{good}\n")
    readers = open_readers([path], PARALLEL)
    for read in (lambda stream: stream.check(), lambda stream: take(stream, 4)):
        with pytest.raises(InputError) as caught:
            read(Stream(readers))
        assert str(caught.value).startswith(f"file {str(path)!r}: {message}")
        assert "\n" not in str(caught.value)
    skipping = Stream(readers, skip_bad_lines=True)
    skipping.check()
    assert [sample.texts for sample in take(skipping, 7)] == [("Hund", "dog")] * 7
    assert skipping.bad_lines == 2


def test_inputs_that_can_not_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty.tsv").write_text("\n\n")
    (tmp_path / "texts.txt").write_text("a\n")
    for name, message in {
        "missing.tsv": "No such file",
        "texts.txt": "the ending .txt is not read; expected one of .tsv, .jsonl",
    }.items():
        with pytest.raises(InputError, match=message):
            open_readers([tmp_path / name], PARALLEL)
    with pytest.raises(InputError, match="no texts for rank 0 of 1"):
        take(Stream(open_readers([tmp_path / "empty.tsv"], PARALLEL)), 1)


def test_a_run_does_not_go_on_with_another_file(tmp_path: Path) -> None:
    one, other = write(tmp_path, [5, 6])
    state = Stream(open_readers([one], PARALLEL)).state_dict()
    with pytest.raises(InputError, match=r"the run to go on with read 0.tsv \(\d+ bytes, \w+\)"):
        Stream(open_readers([other], PARALLEL)).load_state_dict(state)
    content = Path(one).read_bytes()
    Path(one).write_bytes(content)  # the same, written again
    Stream(open_readers([one], PARALLEL)).load_state_dict(state)
    Path(one).write_bytes(content.swapcase())
    with pytest.raises(InputError, match="expected the same files"):
        Stream(open_readers([one], PARALLEL)).load_state_dict(state)


def test_a_file_that_changes_is_an_error(tmp_path: Path) -> None:
    """While it is read, and between two readings."""
    (path,) = write(tmp_path, [5])
    readers = open_readers([path], PARALLEL)
    samples = iter(Stream(readers, buffer_size=1))
    next(samples)
    Path(path).write_text("Hund\tdog\n" * 20)
    with pytest.raises(InputError, match="changed while it was read"):
        list(islice(samples, 30))
    with pytest.raises(InputError, match="has changed since the run began"):
        take(Stream(readers), 1)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "map-style", "iterable"])
def test_datasets(tmp_path: Path, form: str) -> None:
    datasets: Any = pytest.importorskip("datasets")
    rows = {"source": [f"a{row}" for row in range(50)], "target": [f"b{row}" for row in range(50)]}
    dataset = datasets.Dataset.from_dict(rows)
    if form == "folder":
        dataset.save_to_disk(str(tmp_path / "saved"))
        read: Any = str(tmp_path / "saved")
    else:
        read = dataset.to_iterable_dataset() if form == "iterable" else dataset
    streams = [Stream(open_readers([read], PARALLEL), buffer_size=7, rank=rank, world_size=2) for rank in (0, 1)]
    found = [take(stream, 25) for stream in streams]
    assert sorted(sample.texts for part in found for sample in part) == sorted(zip(*rows.values(), strict=True))
    again = Stream(open_readers([read], PARALLEL), buffer_size=7, rank=0, world_size=2)
    again.load_state_dict(streams[0].state_dict(found[0][11]))
    assert take(again, 14) == found[0][11:]
    with pytest.raises(InputError, match="has no column 'text'; its columns are 'source', 'target'"):
        open_readers([read], MONOLINGUAL)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"expected what Dataset.save_to_disk writes"):
        open_readers([tmp_path / "folder"], PARALLEL)
    holes = datasets.Dataset.from_dict({"source": ["a", None, "c"], "target": ["x", "y", ""]})
    with pytest.raises(InputError, match="row 2 has a text that is no string"):
        take(Stream(open_readers([holes], PARALLEL), buffer_size=1), 3)
    skipping = Stream(open_readers([holes], PARALLEL), skip_bad_lines=True)
    assert [sample.texts for sample in take(skipping, 2)] == [("a", "x")] * 2
    assert skipping.bad_lines == 2

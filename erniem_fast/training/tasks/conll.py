"""Tagged sentences of CoNLL files, and schemes of tags.

A line is a word with its columns, which tabs or spaces separate; a blank line ends a sentence.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...files.rows import BadLines
from ...files.source import Source

OUTSIDE = "O"
"""Tag of a word in no entity."""
DOCUMENT = "-DOCSTART-"
"""First column of the line that begins a document in the files of CoNLL-2002 and 2003."""
NO_WORD = re.compile(r"\d+[-.]\d+")
"""First column of a CoNLL-U line that is no word: a range of words, or an empty node."""
CHUNK = re.compile(r"[BIESLUMW]-.+", re.DOTALL)
"""Tag of a word in an entity, by IOB1, IOB2, IOBES, BILOU or BMEWO."""
INNER, LAST = frozenset("IMEL"), frozenset("ELSUW")
"""Prefixes of words that go on with an entity, and of those behind which it is at its end."""


class Line(NamedTuple):
    """A word of a file.

    Attributes:
        number: of the line, from 1.
        word, tag: its columns.
    """

    number: int
    word: str
    tag: str


def read_sentences(source: Source, bad: BadLines, word: int | None, tag: int | None) -> Iterator[list[Line]]:
    """The sentences of a CoNLL file; one with a malformed line is left out as a whole, where bad lines are.

    Lines that begin with "# " are comments before a sentence's first word, unless they have as many columns as the
    first word of the file.

    Args:
        source: the input; in a .conllu file words are in the second column and tags in the fourth unless told
            otherwise, and lines of ranges and of empty nodes are left out.
        bad: what becomes of malformed lines.
        word: number of the column of words, from 1; None: the first.
        tag: number of the column of tags; None: the last, in which case all lines of a sentence have as many columns.

    Raises:
        InputError: the input can't be read, or holds a bad line. Names the file and the line.
    """
    is_universal = source.kind == "conllu"
    if is_universal:
        word, tag = word or 2, tag or 4
    at = (word or 1) - 1
    sentence: list[Line] = []
    is_bad = False
    width, first_width = 0, 0  # columns of the sentence's first word, and of the file's
    for number, line in source.lines():
        fields = _fields(line)
        if not fields or fields[0] == DOCUMENT:
            if sentence and not is_bad:
                yield sentence
            sentence, is_bad, width = [], False, 0
            continue
        if not width and line.startswith("# ") and len(fields) != first_width:
            continue
        if is_universal and NO_WORD.fullmatch(fields[0]):
            continue
        width = width or len(fields)
        first_width = first_width or width
        least = max(at + 1, tag or 2)
        name = "" if len(fields) < least else fields[-1 if tag is None else tag - 1].strip(" ")
        problem = None
        if len(fields) < least:
            problem = f"has {_columns(len(fields))}, not {least} or more"
        elif tag is None and len(fields) != width:
            problem = f"has {_columns(len(fields))}, the sentence's first {width}"
        elif not fields[at] or not name:
            problem = "has an empty column"
        elif "\0" in line:
            problem = "holds a NUL character"
        if problem is None:
            sentence.append(Line(number, fields[at], name))
        else:
            bad.add(source.error(problem, number))
            is_bad = True
    if sentence and not is_bad:
        yield sentence


def _fields(line: str) -> list[str]:
    """Columns of a line, none of a blank one. A word may be any white space but a space or a tab."""
    line = line.removesuffix("\n").removesuffix("\r")
    if not line.strip(" \t"):
        return []
    return line.split("\t") if "\t" in line else [field for field in line.split(" ") if field]


def _columns(count: int) -> str:
    return f"{count} column" + "s" * (count != 1)


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Tags of IOB1, IOB2, IOBES, BILOU or BMEWO as IOB2, in which the first word of an entity has B-, the others I-.

    A tag that goes on with an entity which is not there begins one, as the script conlleval reads it. Of correct IOB2
    nothing changes.
    """
    found, kind = [], None
    for tag in tags:
        if tag == OUTSIDE:
            found.append(tag)
            kind = None
            continue
        prefix, _, name = tag.partition("-")
        found.append(f"{'I' if prefix in INNER and name == kind else 'B'}-{name}")
        kind = None if prefix in LAST else name
    return found

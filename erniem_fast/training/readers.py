"""Readers around others: pairs of sentences that follow each other, and languages that a model knows."""

from collections.abc import Collection, Iterator

from ..files.errors import InputError
from ..files.records import listing
from ..files.rows import BadLines
from .streams import Reader, Sample


class Around:
    """A reader that gives what it makes of another one's samples."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.name, self.size, self.identity, self.quick = reader.name, reader.size, reader.identity, reader.quick

    def read(self, bad: BadLines) -> Iterator[Sample]:
        """The samples in order; see `Reader`."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise the InputError of the first bad line, if the content is read within a second or two."""
        if self.quick:
            for _ in self.read(BadLines()):
                pass


class Following(Around):
    """Each text with the one on the next line or in the next row, as a pair.

    A blank line, or a bad one that is left out, parts documents: what stands before it is in no pair with what stands
    behind it.
    """

    def read(self, bad: BadLines) -> Iterator[Sample]:
        """The pairs in order; see `Reader`.

        Raises:
            InputError: there is none.
        """
        before: Sample | None = None
        found = False
        for sample in self.reader.read(bad):
            if before is not None and _number(sample) == _number(before) + 1:
                found = True
                texts, languages = before.texts + sample.texts, before.languages + sample.languages
                yield before._replace(texts=texts, languages=languages)
            before = sample
        if not found:
            raise InputError(
                f"{self.name!r}: no text follows another; expected a sentence a line, and blank lines between documents"
            )


def _number(sample: Sample) -> int:
    return int(sample.place.rpartition(":")[2])


class Spoken(Around):
    """Samples whose languages are among those of a model; others are bad lines.

    Args:
        reader: of texts or of pairs.
        languages: names of them.
    """

    def __init__(self, reader: Reader, languages: Collection[str]) -> None:
        super().__init__(reader)
        self.languages = languages

    def read(self, bad: BadLines) -> Iterator[Sample]:
        """The samples in order; see `Reader`."""
        for sample in self.reader.read(bad):
            with bad.caught():
                yield self._checked(sample)

    def _checked(self, sample: Sample) -> Sample:
        for language in sample.languages:
            if not isinstance(language, str) or language not in self.languages:
                said = "no language" if language is None else f"the language {language!r}"
                raise InputError(f"{sample.place}: has {said}; the model knows {listing(list(self.languages))}")
        return sample

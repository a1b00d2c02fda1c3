"""Tasks whose examples hold the places of characters among tokens, so that tokens decide whether a line is good."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping

from ...files.rows import BadLines
from ...files.source import Source
from ...inference.tokens import Tokens, tokens_of
from .base import Example, FineTuningTask


class TokenizedTask(FineTuningTask[Example]):
    """Task whose examples are tokenized when they are read."""

    def read(self, source: Source, bad: BadLines) -> list[Example]:
        examples = super().read(source, bad)
        numbers = iter(self.lines)
        kept: list[Example] = []
        lines: list[int | None] = []
        for block in self.tracked(examples, "Tokenizing"):
            tokens = tokens_of((text for example in block for text in self.texts(example)), self.tokenizer)
            for example in block:
                number = next(numbers)
                with bad.caught():
                    try:
                        kept.append(self.tokenized(example, tokens))
                        lines.append(number)
                    except ValueError as error:
                        raise source.error(str(error), number) from error
        if not kept:
            raise self.none_left(bad)
        self.lines = lines
        return kept

    @abstractmethod
    def texts(self, example: Example) -> Iterable[str]:
        """The texts of an example."""

    @abstractmethod
    def tokenized(self, example: Example, tokens: Mapping[str, Tokens]) -> Example:
        """The example with its tokens.

        Args:
            example: as `example` makes it.
            tokens: of its texts, without special ones.

        Raises:
            ValueError: it can't be learned. The message follows the line's number.
        """

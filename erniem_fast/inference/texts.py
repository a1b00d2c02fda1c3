"""Texts to rows of tokens, each text by itself, with a prompt before it where one is asked for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .arguments import check_text, check_texts
from .settings import SentenceSettings
from .tokens import Row

TRUNCATIONS = ("right", "left", None)


class TextTokens:
    """Tokens of texts, each alone, cut to what the model takes.

    A text of nothing but white space has no tokens at all.

    Args:
        tokenizer: of the model; lower-cased where the settings say so.
        max_tokens: most tokens of a row, special ones included.
        settings: of the checkpoint; None: those of a plain one.
        truncation: side at which longer texts are cut, "right" or "left"; special tokens stay. None: they are refused.
        prompt: text that is put before each of the texts; None: that of `prompt_name`.
        prompt_name: name of a prompt of the settings; None: their default, if they have one.

    Attributes:
        truncated: number of texts that were cut so far.

    Raises:
        ValueError: an unknown name or side.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_tokens: int,
        settings: SentenceSettings | None = None,
        *,
        truncation: str | None = "right",
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> None:
        if truncation not in TRUNCATIONS:
            raise ValueError(f"truncation must be one of {TRUNCATIONS}, got {truncation!r}")
        self.tokenizer, self.max_tokens, self.truncation = tokenizer, max_tokens, truncation
        self.settings = SentenceSettings() if settings is None else settings
        self.prompt = find_prompt(self.settings, prompt, prompt_name)
        self.truncated = 0
        self._special = set(tokenizer.all_special_ids)

    def tokenize(self, items: Sequence[str], first: int = 0) -> list[Row]:
        """Tokenize texts.

        Raises:
            TypeError: an item is no str.
            ValueError: it holds a lone surrogate, or has more tokens than the model takes and is not to be cut.
        """
        check_texts("texts", items, first)
        texts = [self.prompt + text for text in items]
        # verbose: the tokenizer would warn of long texts.
        found = self.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"] if texts else []
        return [self._row(text, ids, place) for place, (text, ids) in enumerate(zip(items, found, strict=True), first)]

    def size(self, tokens: Row) -> int:
        return len(tokens.ids)

    def _row(self, text: str, ids: list[int], place: int) -> Row:
        if not text.strip():
            return Row(np.zeros(0, np.int32))
        row = np.array(ids, dtype=np.int32)
        if len(row) > self.max_tokens:
            if self.truncation is None:
                raise ValueError(f"texts[{place}] must have at most {self.max_tokens} tokens, got {len(row)}")
            self.truncated += 1
            row = self._cut(row)
        return Row(row)

    def _cut(self, row: np.ndarray) -> np.ndarray:
        special = [token in self._special for token in (int(row[0]), int(row[-1]))]
        opening, closing = row[: special[0]], row[len(row) - special[1] :]
        inner = row[len(opening) : len(row) - len(closing)]
        room = self.max_tokens - len(opening) - len(closing)
        kept = inner[:room] if self.truncation == "right" else inner[len(inner) - room :]
        return np.concatenate((opening, kept, closing))


def find_prompt(settings: SentenceSettings, prompt: str | None, prompt_name: str | None) -> str:
    """The prompt that an argument names, or the settings' default, or ""."""
    if prompt is not None:
        if prompt_name is not None:
            raise ValueError(f"prompt_name must be None beside a prompt, got {prompt_name!r}")
        check_text("prompt", prompt)
        return prompt
    name = settings.default_prompt_name if prompt_name is None else prompt_name
    if name is None:
        return ""
    if name not in settings.prompts:
        known = ", ".join(map(repr, settings.prompts)) or "none: the folder has no prompts"
        raise ValueError(f"prompt_name must be one of the folder's prompts ({known}), got {name!r}")
    return settings.prompts[name]

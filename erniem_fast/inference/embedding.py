"""Vectors of texts: one a text, or one a token."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..packing import PackedBatch
from .arguments import check_text, check_whole
from .pooling import POOLINGS, pool
from .runner import Runner
from .settings import Normalize, SentenceSettings, prompt_length
from .tokens import Row

TRUNCATIONS = ("right", "left", None)


class TextTokens:
    """Tokens of texts, each alone, cut to what the model takes. The first half of both tasks of this file.

    A text of nothing but white space has no tokens at all.

    Args:
        tokenizer: of the model; lower-cased where the settings say so.
        runner: of the model.
        settings: of the checkpoint.
        max_tokens: most tokens of a row, special ones included.
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
        runner: Runner,
        settings: SentenceSettings,
        max_tokens: int,
        *,
        truncation: str | None = "right",
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> None:
        if truncation not in TRUNCATIONS:
            raise ValueError(f"truncation must be one of {TRUNCATIONS}, got {truncation!r}")
        self.tokenizer, self.runner, self.settings, self.max_tokens = tokenizer, runner, settings, max_tokens
        self.truncation = truncation
        self.prompt = find_prompt(settings, prompt, prompt_name)
        self.truncated = 0
        self._special = set(tokenizer.all_special_ids)

    def tokenize(self, items: Sequence[str], first: int = 0) -> list[Row]:
        """Tokenize texts.

        Raises:
            TypeError: an item is no str.
            ValueError: it holds a lone surrogate, or has more tokens than the model takes and is not to be cut.
        """
        for place, text in enumerate(items, first):
            check_text(f"texts[{place}]", text)
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


class Embedding(TextTokens):
    """Task: a vector for each text. The vector of a text without tokens is zeros.

    Args:
        pooling: names in `pooling.POOLINGS`, one or several, whose vectors are joined; None: those of the settings.
        normalize: scale each vector to length 1; None: where the settings say so; False: leave theirs out.
        truncate_dim: keep the first so many numbers of each vector; None: what the settings say.
        others: see `TextTokens`.

    Raises:
        ValueError: an unknown pooling, or another argument that is not as described.
    """

    def __init__(
        self,
        tokenizer: Any,
        runner: Runner,
        settings: SentenceSettings,
        max_tokens: int,
        *,
        pooling: str | Iterable[str] | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        **tokens: Any,
    ) -> None:
        super().__init__(tokenizer, runner, settings, max_tokens, **tokens)
        poolings = settings.pooling if pooling is None else (pooling,) if isinstance(pooling, str) else tuple(pooling)
        for name in poolings:
            if name not in POOLINGS:
                raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {name!r}")
        if truncate_dim is not None:
            check_whole("truncate_dim", truncate_dim, 1)
        self.poolings = poolings
        self.truncate_dim = settings.truncate_dim if truncate_dim is None else truncate_dim
        self.normalize = bool(normalize)
        kept = [part for part in settings.modules if normalize is None or not isinstance(part, Normalize)]
        self.modules = nn.ModuleList(kept).to(runner.device)
        if len(poolings) != len(settings.pooling) and any(True for _ in self.modules.parameters()):
            raise ValueError(
                f"pooling must join {len(settings.pooling)} vectors, which the checkpoint's modules take, "
                f"as its own {', '.join(settings.pooling)}; got {', '.join(poolings)}"
            )
        self.skipped = 0 if settings.include_prompt else prompt_length(tokenizer, self.prompt, max_tokens)
        self._dim: int | None = None

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        if self._dim is None:
            self._dim = self._vectors(
                torch.zeros(1, len(self.poolings) * self.runner.encoder.config.hidden_size)
            ).shape[1]
        return self._dim

    def compute(self, tokens: Sequence[Row]) -> np.ndarray:
        """Vectors (len(tokens), dim) float32.

        Raises:
            ValueError: some are not finite.
        """
        vectors = np.zeros((len(tokens), self.dim), dtype=np.float32)
        for indices, found in self.runner.as_completed(tokens, self._of_batch):
            vectors[indices] = found.numpy()
        if not np.isfinite(vectors).all():
            raise ValueError(
                "model must give finite vectors, got NaN or infinity: "
                "its weights are not finite, or its dtype does not hold what it computes"
            )
        return vectors

    def _of_batch(self, batch: PackedBatch) -> Tensor:
        output = self.runner.encode(batch)
        skip = None
        if self.skipped:
            skip = torch.full((batch.num_sequences,), self.skipped, device=batch.cu_seqlens.device)
        return self._vectors(pool(batch, output.last_hidden_state, output.pooler_output, self.poolings, skip))

    def _vectors(self, pooled: Tensor) -> Tensor:
        vectors = pooled.float().to(self.runner.device)
        for module in self.modules:
            vectors = module(vectors)
        vectors = vectors[:, : self.truncate_dim]
        return F.normalize(vectors, dim=1) if self.normalize else vectors


class TokenEmbeddings(TextTokens):
    """Task: for each text, the last hidden states of its tokens, (length, hidden_size) float32."""

    def compute(self, tokens: Sequence[Row]) -> list[np.ndarray]:
        hidden = self.runner.encoder.config.hidden_size
        results = [np.zeros((0, hidden), dtype=np.float32)] * len(tokens)
        for indices, rows in self.runner.as_completed(tokens, self._of_batch):
            ends = np.cumsum([len(tokens[index].ids) for index in indices])
            for index, part in zip(indices, np.split(rows.numpy(), ends[:-1]), strict=True):
                results[index] = part
        return results

    def _of_batch(self, batch: PackedBatch) -> Tensor:
        return self.runner.encode(batch).last_hidden_state.float()


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

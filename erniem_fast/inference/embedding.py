"""Vectors of texts: one a text, or one a token."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..packing import PackedBatch
from .arguments import check_whole
from .pooling import POOLINGS, pool
from .runner import Runner
from .settings import Normalize, SentenceSettings, prompt_length
from .texts import TextTokens
from .tokens import Row


class Embedding(TextTokens):
    """Task: a vector for each text. The vector of a text without tokens is zeros.

    Args:
        pooling: names in `pooling.POOLINGS`, one or several, whose vectors are joined; None: those of the settings.
        normalize: scale each vector to length 1; None: where the settings say so; False: leave theirs out.
        truncate_dim: keep the first so many numbers of each vector; None: what the settings say.
        others: see `TextTokens`.

    Attributes:
        dim: numbers in a vector.

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
        super().__init__(tokenizer, max_tokens, settings, **tokens)
        self.runner = runner
        poolings = settings.pooling if pooling is None else (pooling,) if isinstance(pooling, str) else tuple(pooling)
        for name in poolings or ("none",):
            if name not in POOLINGS:
                raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {name!r}")
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
        pooled = torch.zeros(1, len(poolings) * runner.encoder.config.hidden_size, device=runner.device)
        dim = self._whole_vectors(pooled).shape[1]
        if truncate_dim is not None:
            check_whole("truncate_dim", truncate_dim, 1, dim)
        self.dim: int = dim if self.truncate_dim is None else min(dim, self.truncate_dim)
        self.skipped = 0 if settings.include_prompt else prompt_length(tokenizer, self.prompt, max_tokens)

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
        vectors = self._whole_vectors(pooled.float())[:, : self.truncate_dim]
        return F.normalize(vectors, dim=1) if self.normalize else vectors

    def _whole_vectors(self, pooled: Tensor) -> Tensor:
        vectors = pooled
        for module in self.modules:
            vectors = module(vectors)
        return vectors


class TokenEmbeddings(TextTokens):
    """Task: for each text, the last hidden states of its tokens, (length, hidden_size) float32.

    Args:
        runner: of the model.
        others: see `TextTokens`.
    """

    def __init__(
        self, tokenizer: Any, runner: Runner, settings: SentenceSettings, max_tokens: int, **tokens: Any
    ) -> None:
        super().__init__(tokenizer, max_tokens, settings, **tokens)
        self.runner = runner

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

"""Token classification: entities of texts of any length, equal to transformers' token-classification pipeline.

tag = Tagging(model, tokenizer, Runner(model), aggregation_strategy="simple")
tag.compute(tag.tokenize(["Ada Lovelace lived in London."]))  # [[{"entity_group": "PER", "start": 0, ...}, ...]]

What makes entities of the scores of tokens is the pipeline's own code. A text that is longer than the model takes is
read in overlapping windows, as the pipeline does with `stride`; it is never cut.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TokenClassificationPipeline
from transformers.pipelines.token_classification import AggregationStrategy

from ..modeling import ErnieMForTokenClassification
from .arguments import check_eval, check_head, check_offsets, check_texts, check_whole, template_of
from .arguments import max_tokens as limit
from .runner import Runner
from .scores import check_finite
from .spans import Window, window_starts, windows
from .tokens import Row, Tokens, tokens_of

STRATEGIES = tuple(strategy.value for strategy in AggregationStrategy)
STRIDE = 128


class Read(NamedTuple):
    """A text as it is read.

    Attributes:
        name: of the text, for messages: "texts[3]".
        tokens: of the text.
        windows: over the tokens; none where there are no tokens.
    """

    name: str
    tokens: Tokens
    windows: list[Window]


class Aggregation(TokenClassificationPipeline):  # type: ignore[misc]
    """The part of transformers' pipeline that makes entities of logits, without the parts that load and run a model."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer


class Tagging:
    """Task: the entities of texts.

    A result is a list of dicts, as the pipeline gives them: `entity_group`, `score`, `word`, `start` and `end`, with
    the strategy "none" `entity` and `index` in the place of `entity_group`. `score` is a float.

    Args:
        model: a head for token classification, ErnieM's or one of a family that `padding_free` has changed; in eval
            mode, on any device; it may carry peft's adapters.
        tokenizer: of the model, one that gives offsets.
        runner: of the model.
        aggregation_strategy: "none", "simple", "first", "average" or "max", as in the pipeline.
        stride: tokens that windows of a long text share. With the strategy "none" a token counts in the window in
            whose middle it lies most, and at most half a window is shared; else the longer of two overlapping entities
            counts, then the more certain one, and the stride must be less than a window.
        max_tokens: most tokens of a row; None: what model and tokenizer take.

    Raises:
        TypeError: another class of model or tokenizer.
        ValueError: a tokenizer without offsets, an unknown strategy, a number out of range, or a model in training
            mode.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        runner: Runner,
        *,
        aggregation_strategy: str = "simple",
        stride: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        check_head(model, ErnieMForTokenClassification, tokenizer)
        check_offsets(tokenizer)
        check_eval(model)
        if aggregation_strategy not in STRATEGIES:
            raise ValueError(
                f"aggregation_strategy must be one of {', '.join(STRATEGIES)}, got {aggregation_strategy!r}"
            )
        self.model, self.tokenizer, self.runner = model, tokenizer, runner
        self._strategy = AggregationStrategy(aggregation_strategy)
        self._frame = template_of(model, tokenizer).single
        self.room = limit(model, tokenizer, max_tokens) - self._frame.size
        self.stride = min(STRIDE, self.room // 2) if stride is None else stride
        check_whole("stride", self.stride, 0, self.room - 1)
        self._aggregation = Aggregation(model, tokenizer)

    def tokenize(self, texts: Sequence[str], first: int = 0) -> list[Read]:
        """Tokenize each different text once, and cut long ones into windows.

        Args:
            texts: any number of them.
            first: number of the first one, for messages.

        Raises:
            TypeError: one is not a str.
            ValueError: one holds a lone surrogate.
        """
        names = check_texts("texts", texts, first)
        tokens = tokens_of(texts, self.tokenizer)
        return [
            Read(name, tokens[text], self._windows(len(tokens[text].ids)))
            for name, text in zip(names, texts, strict=True)
        ]

    def _windows(self, length: int) -> list[Window]:
        if not length:
            return []
        if self._strategy == AggregationStrategy.NONE:
            return windows(length, self.room, self.stride)
        starts = window_starts(length, self.room, self.stride)
        return [Window(start, min(start + self.room, length), start, length) for start in starts]

    def size(self, tokens: Read) -> int:
        """Tokens of all windows of a text."""
        return sum(window.stop - window.start + self._frame.size for window in tokens.windows)

    def compute(self, tokens: Sequence[Read]) -> list[list[dict[str, Any]]]:
        """The entities of each text.

        Raises:
            ValueError: the model's scores are not finite.
        """
        rows = [self._row(read, window) for read in tokens for window in read.windows]
        found: list[Any] = [None] * len(rows)
        batches = self.runner.as_completed(rows, lambda batch: self.model(batch, return_dict=True).logits[0])
        for indices, logits in batches:
            parts = torch.split(logits, [len(rows[index].ids) for index in indices])
            for index, part in zip(indices, parts, strict=True):
                found[index] = part
        ends = list(accumulate(len(read.windows) for read in tokens))
        return [
            self._entities(read, found[end - len(read.windows) : end]) for read, end in zip(tokens, ends, strict=True)
        ]

    def _row(self, read: Read, window: Window) -> Row:
        return self._frame.row(read.tokens.ids[window.start : window.stop])

    def _entities(self, read: Read, logits: list[Tensor]) -> list[dict[str, Any]]:
        """Entities from the logits of each window, (tokens, num_labels) with the special tokens'."""
        for part in logits:
            check_finite(part.float().numpy()[None], [read.name])
        if not logits:
            return []
        outputs = [self._output(read, window, part) for window, part in zip(*self._kept(read, logits), strict=True)]
        entities = self._aggregation.postprocess(outputs, self._strategy)
        return [entity | {"score": float(entity["score"])} for entity in entities]

    def _kept(self, read: Read, logits: list[Tensor]) -> tuple[list[Window], list[Tensor]]:
        """Windows for the pipeline to put together; of tokens alone, one with each token from where it counts."""
        if self._strategy != AggregationStrategy.NONE:
            return read.windows, logits
        before = len(self._frame.specials[0])
        owned = [
            part[before + window.first - window.start : before + window.last - window.start]
            for window, part in zip(read.windows, logits, strict=True)
        ]
        behind = logits[-1].shape[0] - len(self._frame.specials[1])
        length = len(read.tokens.ids)
        return [Window(0, length, 0, length)], [torch.cat([logits[0][:before], *owned, logits[-1][behind:]])]

    def _output(self, read: Read, window: Window, logits: Tensor) -> dict[str, Any]:
        """What the pipeline has of a window once its model has run."""
        before, after = map(len, self._frame.specials)
        offsets = read.tokens.offsets[window.start : window.stop].tolist()
        mask = torch.zeros(len(logits), dtype=torch.int64)
        mask[:before], mask[len(mask) - after :] = 1, 1
        return {
            "logits": logits[None],
            "sentence": read.tokens.text,
            "input_ids": [self._row(read, window).ids],
            "offset_mapping": [[(0, 0)] * before + offsets + [(0, 0)] * after],
            "special_tokens_mask": [mask],
        }

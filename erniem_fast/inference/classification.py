"""Sequence classification: labels of texts and of pairs of texts, and scores of documents for a query.

classify = Classification(model, tokenizer, Runner(model))
classify.compute(classify.tokenize(["Der Zug hat Verspätung."]))  # [{"label": "negative", "score": 0.97}]

Sources: the text-classification pipeline of transformers (activations, results); Nogueira and Cho, arXiv 1901.04085,
and the CrossEncoder of sentence-transformers (scores of documents).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from ..modeling import ErnieMForSequenceClassification
from .arguments import check_eval, check_head, check_text, check_whole, template_of
from .arguments import max_tokens as limit
from .runner import Runner
from .scores import check_finite
from .tokens import Row, ids_of

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "none": lambda logits: logits,
}
"""By name: from (n, num_labels) logits to scores of that shape."""


class Label(TypedDict):
    """A label of a text and its score."""

    label: str
    score: float


class Read(NamedTuple):
    """An item as the model reads it.

    Attributes:
        name: of the item, for messages: "texts[3]".
        row: its tokens.
    """

    name: str
    row: Row


class SequenceScores:
    """Logits of texts and pairs of texts: what classifying and ranking share.

    Attributes:
        truncated: number of items that `tokenize` has cut so far.
    """

    name = "texts"
    accepted = "a str or a pair of two"

    def __init__(
        self, model: Any, tokenizer: Any, runner: Runner, max_tokens: int | None = None, prompt: str = ""
    ) -> None:
        check_head(model, ErnieMForSequenceClassification, tokenizer)
        check_eval(model)
        check_text("prompt", prompt)
        self.model, self.tokenizer, self.runner = model, tokenizer, runner
        self._template = template_of(model, tokenizer)
        if max_tokens is not None:
            check_whole("max_tokens", max_tokens, self._template.pair.size + 1)
        self._max_tokens = limit(model, tokenizer, max_tokens)
        self.prompt = prompt
        self.truncated = 0

    def tokenize(self, items: Sequence[Any], first: int = 0) -> list[Read]:
        """Tokenize each different text once; items that are too long are cut, the longer text of a pair first.

        Args:
            items: texts, or pairs of two.
            first: number of the first item, for messages.

        Raises:
            TypeError: an item is anything else.
            ValueError: a text holds a lone surrogate.
        """
        names = [f"{self.name}[{first + place}]" for place in range(len(items))]
        read = [self.texts_of(name, item) for name, item in zip(names, items, strict=True)]
        ids = ids_of((text for texts in read for text in texts), self.tokenizer)
        found = []
        for name, texts in zip(names, read, strict=True):
            tokens = [ids[text] for text in texts]
            self.truncated += not self._template.fits(tokens, self._max_tokens)
            found.append(Read(name, self._template.row(tokens, self._max_tokens)))
        return found

    def texts_of(self, name: str, item: Any) -> tuple[str, ...]:
        """The texts of an item, checked: one or two, with the prompt."""
        is_pair = isinstance(item, tuple | list) and len(item) == 2
        if not is_pair and not isinstance(item, str):
            got = f"{len(item)} texts" if isinstance(item, tuple | list) else type(item).__name__
            raise TypeError(f"{name} must be {self.accepted}, got {got}")
        texts = tuple(item) if is_pair else (item,)
        for place, text in enumerate(texts):
            check_text(f"{name}[{place}]" if is_pair else name, text)
        return (self.prompt + texts[0], *texts[1:])

    def size(self, tokens: Read) -> int:
        """Tokens that the model computes for an item."""
        return len(tokens.row.ids)

    def logits(self, tokens: Sequence[Read]) -> Tensor:
        """(len(tokens), num_labels) on the host, float64 of a model in float64, else float32.

        Raises:
            ValueError: some are not finite.
        """
        rows = [one.row for one in tokens]
        dtype = torch.float64 if self.model.dtype == torch.float64 else torch.float32
        logits = torch.empty(len(rows), self.model.config.num_labels, dtype=dtype)
        batches = self.runner.as_completed(rows, lambda batch: self.model(batch, return_dict=True).logits)
        for indices, found in batches:
            logits[indices] = torch.as_tensor(found).to("cpu", dtype)
        check_finite(logits.numpy(), [one.name for one in tokens])
        return logits


class Classification(SequenceScores):
    """Task: labels of texts, or of pairs of texts, equal to transformers' text-classification pipeline.

    Args:
        model: a head for sequence classification, ErnieM's or one of a family that `padding_free` has changed; in eval
            mode, on any device; it may carry peft's adapters.
        tokenizer: of the model.
        runner: of the model.
        top_k: 1: a result is the best `Label`; k: a list of the k best; None: a list of all; the best first.
        activation: from logits to scores: "softmax", "sigmoid", "none", or a function of (n, num_labels) tensors;
            None: as the pipeline does, by the configuration's `problem_type`; else sigmoid for a single label, softmax
            for several.
        max_tokens: most tokens of a row; None: what model and tokenizer take.
        prompt: text that is put before each text, or the first of each pair.

    Raises:
        TypeError: another class of model or tokenizer.
        ValueError: an unknown activation, numbers out of range, or a model in training mode.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        runner: Runner,
        *,
        top_k: int | None = 1,
        activation: str | Activation | None = None,
        max_tokens: int | None = None,
        prompt: str = "",
    ) -> None:
        super().__init__(model, tokenizer, runner, max_tokens, prompt)
        if top_k is not None:
            check_whole("top_k", top_k, 1)
        self.top_k = top_k
        self._activation = find_activation(activation, default_activation(model.config))

    def compute(self, tokens: Sequence[Read]) -> list[Any]:
        """The labels of each item.

        Raises:
            ValueError: the model's scores are not finite.
        """
        scores = self._activation(self.logits(tokens)).numpy()
        names, best = self.model.config.id2label, (-scores).argsort(1, kind="stable")[:, : self.top_k]
        results = [
            [Label(label=names[index], score=float(row[index])) for index in order.tolist()]
            for row, order in zip(scores, best, strict=True)
        ]
        return [labels[0] for labels in results] if self.top_k == 1 else results


class Reranking(SequenceScores):
    """Task: how well a document fits a query, as the CrossEncoder of sentence-transformers scores them.

    Items are (query, document). A model with several labels gives no single score: `Classification` gives its labels.

    Args:
        model: as in `Classification`, with one label.
        tokenizer: of the model.
        runner: of the model.
        activation: as in `Classification`; None: sigmoid.
        max_tokens: most tokens of a row; None: what model and tokenizer take.
        prompt: text that is put before each query.

    Raises:
        TypeError: another class of model or tokenizer.
        ValueError: the model has several labels; an unknown activation, or a model in training mode.
    """

    name = "pairs"
    accepted = "a pair of a query and a document"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        runner: Runner,
        *,
        activation: str | Activation | None = None,
        max_tokens: int | None = None,
        prompt: str = "",
    ) -> None:
        super().__init__(model, tokenizer, runner, max_tokens, prompt)
        if model.config.num_labels != 1:
            raise ValueError(
                f"model must have one label to rank documents by, got {model.config.num_labels}; "
                f"classify pairs of a query and a document instead"
            )
        self._activation = find_activation(activation, "sigmoid")

    def texts_of(self, name: str, item: Any) -> tuple[str, ...]:
        if isinstance(item, str):
            raise TypeError(f"{name} must be {self.accepted}, got str")
        return super().texts_of(name, item)

    def compute(self, tokens: Sequence[Read]) -> list[float]:
        """The score of each pair.

        Raises:
            ValueError: the model's scores are not finite.
        """
        scores: list[float] = self._activation(self.logits(tokens)).flatten().tolist()
        return scores


def default_activation(config: Any) -> str:
    """Name of the activation that transformers' pipeline takes where none is asked for."""
    if config.problem_type == "regression":
        return "none"
    return "sigmoid" if config.problem_type == "multi_label_classification" or config.num_labels == 1 else "softmax"


def find_activation(activation: str | Activation | None, default: str) -> Activation:
    """The function behind a name.

    Raises:
        ValueError: an unknown name.
    """
    activation = default if activation is None else activation
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, or a function, got {activation!r}")
    return ACTIVATIONS[activation]

"""Sentence embeddings of pairs: each text is to be most like its partner, by the cosine of mean-pooled vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from ...files.errors import InputError
from ...files.records import listing
from ...files.rows import Row
from ...inference.arguments import encoder_of
from ...inference.tokens import PairTemplate, ids_of
from ..contrastive import LOSSES
from ..objective import Objective
from ..sentence_folder import write_sentence_files
from .base import Feature, FineTuningTask, text_of

NEGATIVE = "negative"
"""Column of negatives unless told otherwise."""
TEMPERATURE = 0.05
ROWS_AT_ONCE = 1024
"""Texts that are compared with all others at once in an evaluation."""


class Example(NamedTuple):
    """A pair, and perhaps a negative.

    Attributes:
        texts: anchor, positive and, if the file has negatives, negative.
    """

    texts: tuple[str, ...]


class Embedding(FineTuningTask[Example]):
    """Task: vectors by which each text finds its partner, such as its translation or the answer to it.

    A batch's other pairs are the negatives, so that its size matters, and a text should not come twice in it. With
    several processes they are those of all processes; steps of gradient accumulation are batches of their own.

    Args:
        tokenizer, max_length: see `FineTuningTask`. Longer texts are cut; `notes` says how many.
        anchor_column, positive_column: columns with the pairs.
        negative_column: column with texts that are not the anchor's, which TRAIN must have; None: "negative", read if
            the file has it.
        loss: "softmax" (InfoNCE in both directions) or "hardest-negative" (binary cross-entropy of the partner and of
            the most similar other text, as ERNIE-M's authors for Tatoeba).
        temperature: by which cosines are divided in the loss.
    """

    name = "embed"
    head = "Model"
    unit = "pairs"
    best_metric = "accuracy"

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        anchor_column: str = "anchor",
        positive_column: str = "positive",
        negative_column: str | None = None,
        loss: str = "softmax",
        temperature: float = TEMPERATURE,
    ) -> None:
        super().__init__(tokenizer, max_length)
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a number above 0, got {temperature!r}")
        self.columns, self.negative_column = (anchor_column, positive_column), negative_column or NEGATIVE
        self.needs_negatives = negative_column is not None
        self.loss, self.temperature = loss, temperature
        self._template = PairTemplate.of(tokenizer)
        self.check_max_length(self._template.single)

    def read(self, source: Any, bad: Any) -> list[Example]:
        self._width = None
        return super().read(source, bad)

    _width: int | None = None
    """Texts of an example of the file that is being read."""
    _without: Sequence[str] = ()
    """Columns of the first row without a negative."""

    def example(self, record: Row) -> Example:
        names = [*self.columns, *([self.negative_column] if self.negative_column in record else [])]
        if len(names) == 2:
            self._without = self._without or list(map(str, record))
        texts = tuple(text_of(record, name) for name in names)
        empty = next((name for name, text in zip(names, texts, strict=True) if not text.strip()), None)
        if empty is not None:
            raise ValueError(f"has an empty {empty!r}")
        if self._width is None:
            self._width = len(texts)
        elif self._width != len(texts):
            has = "has" if len(texts) == 3 else "has no"
            raise ValueError(
                f"{has} {self.negative_column!r}, unlike the first line; expected one in all lines or none"
            )
        return Example(texts)

    def fit(self, train: Sequence[Example], dev: Sequence[Example], head: Any) -> None:
        if self.needs_negatives and len(train[0].texts) == 2:  # an evaluation has no use for them
            raise InputError(
                f"--negative-column {self.negative_column!r}: TRAIN has no such column; "
                f"expected one of {listing(list(self._without))}"
            )

    def features(self, examples: Sequence[Example], training: bool) -> list[Feature]:
        template = self._template
        ids = ids_of((text for example in examples for text in example.texts), self.tokenizer)
        cut, found = 0, []
        for example in examples:
            texts = [[ids[text]] for text in example.texts]
            cut += sum(not template.fits(text, self.max_length) for text in texts)
            rows = [template.row(text, self.max_length).ids.tolist() for text in texts]
            found.append({"input_ids": rows, "labels": 0})  # Trainer measures batches with labels only
        if cut:
            self.notes.append(f"{cut} of {sum(len(one.texts) for one in examples)} texts were cut to {self.max_length}")
        return found

    def check_batches(self, batch_sizes: np.ndarray, examples: Sequence[Example]) -> None:
        if len(examples[0].texts) > 2:  # a negative of its own
            return
        alone = int((batch_sizes == 1).sum())
        if alone == len(batch_sizes):
            raise InputError("--batch-tokens: every batch holds one pair, and no other to tell it from; expected more")
        if alone:
            self.notes.append(
                f"{alone} of {len(batch_sizes)} batches hold one pair, and no other to tell it from: they teach "
                f"nothing; more --batch-tokens would help"
            )

    def objective(self, model: Any) -> Objective:
        """The loss of pooled vectors; its outputs hold `embeddings`, (num_pairs, 2 or 3, hidden_size) float32."""
        pooler = getattr(encoder_of(model), "pooler", None)
        if pooler is not None:
            pooler.requires_grad_(False)  # plain DDP waits for every gradient
        losses = LOSSES[self.loss]

        def compute(model: Any, batch: dict[str, Any], num_items_in_batch: Tensor | int | None) -> tuple[Tensor, Any]:
            inputs = {name: value for name, value in batch.items() if name not in ("labels", "padded_shape")}
            output = model(**inputs, return_packed=True)
            vectors = output.batch.mean(output.last_hidden_state)
            vectors = vectors.view(*batch["padded_shape"][:2], vectors.shape[1])
            found = losses(vectors, self.temperature)
            loss = found.mean() if num_items_in_batch is None else found.sum() / num_items_in_batch
            return loss, {"loss": loss, "embeddings": vectors}

        return compute

    def save_files(self, folder: Path, model: Any) -> None:
        """Make the folder one of sentence-transformers."""
        write_sentence_files(folder, self.max_length)

    def metrics(
        self, predictions: EvalPrediction, examples: Sequence[Example], features: Sequence[Feature]
    ) -> dict[str, float]:
        """Share of texts that are most like their partner: of anchors among positives, the reverse, and the mean."""
        vectors = torch.nn.functional.normalize(torch.as_tensor(np.asarray(predictions.predictions)).float(), dim=-1)
        anchors, positives = ([example.texts[side] for example in examples] for side in (0, 1))
        there = retrieval_accuracy(vectors[:, 0], vectors[:, 1], positives)
        back = retrieval_accuracy(vectors[:, 1], vectors[:, 0], anchors)
        return {"accuracy": (there + back) / 2, "accuracy_of_anchors": there, "accuracy_of_positives": back}


def retrieval_accuracy(queries: Tensor, candidates: Tensor, texts: Sequence[str]) -> float:
    """Share of queries whose nearest candidate is their own.

    Args:
        queries, candidates: (n, hidden_size) unit vectors; candidate i is right for query i.
        texts: of the candidates; an equal text is as right.
    """
    numbers: dict[str, int] = {}
    kinds = torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts])
    right = 0
    for start in range(0, len(queries), ROWS_AT_ONCE):
        nearest = (queries[start : start + ROWS_AT_ONCE] @ candidates.T).argmax(1)
        right += int((kinds[nearest] == kinds[start : start + len(nearest)]).sum())
    return right / len(queries)

"""Zero-shot classification: labels chosen at call time, by a model of natural language inference.

classify = zero_shot_classification(model, tokenizer)
classify("Der Zug hat Verspätung.", ["travel", "sport"])  # {"sequence": ..., "labels": [...], "scores": [...]}

A label is put into a hypothesis, "This example is travel.", and its score comes from the logit of entailment for
[CLS] text [SEP] [SEP] hypothesis [SEP]. Texts and hypotheses are tokenized once each, and the pairs of all texts with
all hypotheses are computed in batches without padding.

Sources: Yin et al., arXiv 1909.00161; the zero-shot-classification pipeline of transformers (arguments, results).
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypedDict, overload

import numpy as np

from ..modeling import ErnieMForSequenceClassification
from ..packing import PackedBatch
from ..tokenization import ErnieMTokenizer
from .arguments import check_eval, check_parts, check_text, list_texts, max_tokens
from .batching import as_completed
from .tokens import SPECIAL_TOKENS, join_pair, tokenize_in_chunks

HYPOTHESIS_TEMPLATE = "This example is {}."
MANY_PAIRS = 256
"""More pairs than these show a progress bar unless told otherwise."""

logger = logging.getLogger(__name__)


class Classified(TypedDict):
    """The labels of a text.

    Attributes:
        sequence: the text.
        labels: all labels, the most probable first; none where the text holds no tokens.
        scores: their probabilities, in the same order.
    """

    sequence: str
    labels: list[str]
    scores: list[float]


class Pairs(Sequence[np.ndarray]):
    """Every text with every hypothesis, a text after the other: (length,) int32 token ids each.

    They are put together when they are read: all at once may not fit into memory. A text without tokens makes empty
    pairs.

    Args:
        texts: token ids of each text, without special tokens.
        hypotheses: likewise; at most `max_tokens` - `SPECIAL_TOKENS` each.
        tokenizer: whose special tokens and truncation side count.
        max_tokens: most tokens of a pair. Of one that is longer the text is cut, as by truncation "only_first".

    Attributes:
        truncated: number of texts that are cut in any of their pairs.
    """

    def __init__(
        self, texts: list[np.ndarray], hypotheses: list[np.ndarray], tokenizer: ErnieMTokenizer, max_tokens: int
    ) -> None:
        self.texts = texts
        self._hypotheses = hypotheses
        self._tokenizer = tokenizer
        self._rooms = [max_tokens - SPECIAL_TOKENS - len(ids) for ids in hypotheses]
        self._from_left = tokenizer.truncation_side == "left"
        self.truncated = sum(len(text) > min(self._rooms) for text in texts)

    def lengths(self) -> np.ndarray:
        """(len(self),) int64, the tokens of each."""
        texts = np.array([len(text) for text in self.texts], dtype=np.int64)[:, None]
        hypotheses = np.array([len(ids) for ids in self._hypotheses], dtype=np.int64)
        return np.where(texts, np.minimum(texts, self._rooms) + hypotheses + SPECIAL_TOKENS, 0).ravel()

    def __len__(self) -> int:
        return len(self.texts) * len(self._hypotheses)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place, label = divmod(range(len(self))[index], len(self._hypotheses))
        text, room = self.texts[place], self._rooms[label]
        if not len(text):
            return text
        kept = text[max(0, len(text) - room) :] if self._from_left else text[:room]
        return join_pair(self._tokenizer, kept, self._hypotheses[label])


class ZeroShotClassification:
    """Callable that classifies texts; made by `zero_shot_classification`."""

    def __init__(self, model: ErnieMForSequenceClassification, tokenizer: ErnieMTokenizer, batch_tokens: int) -> None:
        check_parts(model, ErnieMForSequenceClassification, tokenizer, batch_tokens)
        if model.config.num_labels < 2:
            raise ValueError("model must have at least 2 labels, entailment and contradiction, got 1")
        self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens
        if self._columns[0] == -1:
            logger.warning(
                "No label of the model begins with 'entail' (config.label2id holds %s): the last one is taken for "
                "entailment, the first for contradiction.", ", ".join(map(str, model.config.label2id)),
            )  # fmt: skip

    @property
    def _columns(self) -> list[int]:
        """Columns of the logits for entailment and contradiction, as the pipeline finds them."""
        labels = self.model.config.label2id.items()
        entailment = next((index for label, index in labels if str(label).lower().startswith("entail")), -1)
        return [entailment, -1 if entailment == 0 else 0]

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is an iterable of str, too
        self, sequences: str, candidate_labels: str | Iterable[str], *, hypothesis_template: str = ...,
        multi_label: bool = ..., progress: bool | None = ...,
    ) -> Classified: ...  # fmt: skip
    @overload
    def __call__(
        self, sequences: Iterable[str], candidate_labels: str | Iterable[str], *, hypothesis_template: str = ...,
        multi_label: bool = ..., progress: bool | None = ...,
    ) -> list[Classified]: ...  # fmt: skip
    def __call__(
        self,
        sequences: str | Iterable[str],
        candidate_labels: str | Iterable[str],
        *,
        hypothesis_template: str = HYPOTHESIS_TEMPLATE,
        multi_label: bool = False,
        progress: bool | None = None,
    ) -> Classified | list[Classified]:
        """Classify one text or many.

        Args:
            sequences: a text, or any number of them. Of a text that is too long with its hypothesis the end is cut
                (where `tokenizer.truncation_side` is "left", the beginning).
            candidate_labels: the labels; a str is split at its commas.
            hypothesis_template: the hypothesis, with {} in the place of the label. Write it in any language.
            multi_label: False: exactly one label fits, and the scores of a text sum to 1 (softmax over the logits of
                entailment). True, or with a single label: any number of them may fit, and each score is the
                probability of entailment against contradiction.
            progress: show progress bars on stderr; None: with more than 256 pairs.

        Returns:
            To a str a `Classified`, else a list of them in the order of the texts. A text without tokens, such as
            white space alone, gets no labels.

        Raises:
            TypeError: a text or a label is not a str.
            ValueError: the model is in training mode; a text or a label holds a lone surrogate; a label is empty or
                given twice, or there is none; the template has no place for the label; a hypothesis leaves no room
                for a text; or the model's scores are not finite.
        """
        texts = list_texts("sequences", sequences)
        labels = split_labels(candidate_labels) if isinstance(candidate_labels, str) else candidate_labels
        labels = list_texts("candidate_labels", labels)
        shown = len(texts) * len(labels) > MANY_PAIRS if progress is None else progress
        pairs = self.tokenize(texts, labels, hypothesis_template, shown)
        results = self.classify(pairs, texts, labels, multi_label, shown)
        return results[0] if isinstance(sequences, str) else results

    def tokenize(
        self, texts: Sequence[str], labels: Sequence[str], hypothesis_template: str, progress: bool = False
    ) -> Pairs:
        """Tokenize each text and each hypothesis once; see `__call__`."""
        check_eval(self.model)
        hypotheses = fill_template(hypothesis_template, labels)
        most = max_tokens(self.model, self.tokenizer)
        ids = self._token_ids(hypotheses, False)
        for label, tokens in zip(labels, ids, strict=True):
            if len(tokens) >= most - SPECIAL_TOKENS:
                raise ValueError(
                    f"candidate_labels must leave room for the text: a hypothesis may have {most - SPECIAL_TOKENS - 1} "
                    f"tokens, got {len(tokens)} for {label!r:.80}"
                )
        return Pairs(self._token_ids(texts, progress), ids, self.tokenizer, most)

    def classify(
        self, pairs: Pairs, texts: Sequence[str], labels: Sequence[str], multi_label: bool, progress: bool = False
    ) -> list[Classified]:
        """Compute the pairs that `tokenize` made of the texts and labels; see `__call__`."""
        columns = self._columns

        def compute(batch: PackedBatch) -> np.ndarray:
            return self.model(batch, return_dict=True).logits[:, columns].cpu().double().numpy()

        logits = np.zeros((len(texts), len(labels), 2))
        bar = "Classifying" if progress else None
        batches = as_completed(pairs, compute, self.batch_tokens, self.model.device, bar, pairs.lengths())
        for indices, found in batches:
            logits.reshape(-1, 2)[indices] = found
        if not np.isfinite(logits).all():
            place = int(np.isfinite(logits).all((1, 2)).argmin())
            raise ValueError(f"model must give finite scores, got NaN or infinity for sequences[{place}]")
        entailment = logits[..., 0]
        if multi_label or len(labels) == 1:
            scores = 1 / (1 + np.exp(np.minimum(logits[..., 1] - entailment, 700)))
        else:
            powers = np.exp(entailment - entailment.max(1, keepdims=True))
            scores = powers / powers.sum(1, keepdims=True)
        results: list[Classified] = []
        for text, tokens, row in zip(texts, pairs.texts, scores, strict=True):
            order = row.argsort(kind="stable")[::-1] if len(tokens) else []
            results.append(
                {"sequence": text, "labels": [labels[i] for i in order], "scores": [float(row[i]) for i in order]}
            )
        return results

    def _token_ids(self, texts: Sequence[str], progress: bool) -> list[np.ndarray]:
        chunks = tokenize_in_chunks(texts, self.tokenizer, progress, add_special_tokens=False)
        return [np.array(ids, np.int32) for _, found in chunks for ids in found["input_ids"]]


def zero_shot_classification(
    model: ErnieMForSequenceClassification, tokenizer: ErnieMTokenizer, *, batch_tokens: int = 8192
) -> ZeroShotClassification:
    """Make a callable that classifies texts by labels chosen at call time, equal to transformers' pipeline.

        classify = zero_shot_classification(model, tokenizer)
        classify(texts, ["travel", "sport"], hypothesis_template="This text is about {}.")

    Args:
        model: a model of natural language inference, in eval mode, on any device; it may carry peft's adapters. Its
            label2id names the label whose name begins with "entail"; else the last one counts, and a warning says so.
        tokenizer: of the model.
        batch_tokens: most tokens of a batch; a longer pair makes a batch alone.

    Returns:
        The callable; `ZeroShotClassification.__call__` describes its arguments.

    Raises:
        TypeError: the model is no `ErnieMForSequenceClassification`, or the tokenizer no `ErnieMTokenizer`.
        ValueError: `batch_tokens` is no whole number of at least 1, or the model has a single label.
    """
    return ZeroShotClassification(model, tokenizer, batch_tokens)


def split_labels(labels: str) -> list[str]:
    """Labels between commas, without the white space around them."""
    return [label.strip() for label in labels.split(",")]


def fill_template(template: str, labels: Sequence[str]) -> list[str]:
    """Put each label into the template.

    Raises:
        TypeError: the template is not a str.
        ValueError: there are no labels, one is empty or given twice, or the template has no place for a label.
    """
    check_text("hypothesis_template", template)
    if not labels or not all(label.strip() for label in labels):
        got = f"an empty one among {list(labels)!r:.80}" if labels else "none"
        raise ValueError(f"candidate_labels must hold at least one label, none of them empty, got {got}")
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise ValueError(f"candidate_labels must differ from each other, got {twice[0]!r:.80} more than once")
    try:
        filled = [template.format(label) for label in labels]
        has_place = template.format("a") != template.format("b")
    except (ValueError, LookupError, AttributeError) as error:
        raise ValueError(
            f"hypothesis_template must hold {{}} once for the label, got {template!r:.80} ({error})"
        ) from error
    if not has_place:
        raise ValueError(f"hypothesis_template must hold {{}} in the place of the label, got {template!r:.80}")
    return filled

"""Zero-shot classification: labels chosen at call time, by a model of natural language inference.

classify = zero_shot_classification(model, tokenizer)
classify("Der Zug hat Verspätung.", ["travel", "sport"])  # {"sequence": ..., "labels": [...], "scores": [...]}

A label is put into a hypothesis, "This example is travel.", and its score comes from the logit of entailment for
[CLS] text [SEP] [SEP] hypothesis [SEP]. Texts and hypotheses are tokenized once each, and the pairs of all texts with
all hypotheses are computed in batches without padding.

Sources: Yin et al., arXiv 1909.00161; the zero-shot-classification pipeline of transformers (arguments, results).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from string import Formatter
from typing import Any, NamedTuple, TypedDict, overload

import numpy as np

from ..modeling import ErnieMForSequenceClassification
from ..validation import warn_once
from .arguments import check_eval, check_head, check_parts, check_text, check_texts, list_texts, template_of
from .arguments import max_tokens as limit
from .runner import Runner
from .runs import compute_all, tokenize_all
from .scores import check_finite, sigmoid, softmax, to_numpy
from .tokens import Row, ids_of

HYPOTHESIS_TEMPLATE = "This example is {}."
MANY_PAIRS = 256
"""More pairs than these show a progress bar unless told otherwise."""


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


class Read(NamedTuple):
    """A text as it is read.

    Attributes:
        name: of the text, for messages: "texts[3]".
        text: the text.
        ids: (length,) int32, without special tokens.
    """

    name: str
    text: str
    ids: np.ndarray


class ZeroShot:
    """Task: the labels of texts, by a model of natural language inference; see `ZeroShotClassification.__call__`.

    Args:
        model: a head for sequence classification, ErnieM's or one of a family that `padding_free` has changed; in eval
            mode, on any device; it may carry peft's adapters.
        tokenizer: of the model.
        runner: of the model.
        candidate_labels: the labels; a str is split at its commas.
        hypothesis_template: the hypothesis, with {} in the place of the label.
        multi_label: any number of labels may fit a text.
        max_tokens: most tokens of a row; None: what model and tokenizer take.
        name: of the texts, for messages.

    Attributes:
        truncated: number of texts that `tokenize` has read and that are cut in any of their pairs.

    Raises:
        TypeError: another class of model or tokenizer; a label that is not a str.
        ValueError: a model in training mode, or with a single label; labels, a template or hypotheses that can't be
            right.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        runner: Runner,
        *,
        candidate_labels: str | Iterable[str],
        hypothesis_template: str = HYPOTHESIS_TEMPLATE,
        multi_label: bool = False,
        max_tokens: int | None = None,
        name: str = "texts",
    ) -> None:
        check_head(model, ErnieMForSequenceClassification, tokenizer)
        self._columns = columns_of(model)
        check_eval(model)
        labels = split_labels(candidate_labels) if isinstance(candidate_labels, str) else candidate_labels
        self.labels = list_texts("candidate_labels", labels)
        hypotheses = fill_template(hypothesis_template, self.labels)
        self.model, self.tokenizer, self.runner = model, tokenizer, runner
        self.multi_label, self.name = multi_label, name
        self._template = template_of(model, tokenizer)
        self.truncated = 0
        room = limit(model, tokenizer, max_tokens) - self._template.pair.size
        ids = ids_of(hypotheses, tokenizer)
        self._hypotheses = [ids[hypothesis] for hypothesis in hypotheses]
        self._rooms = [room - len(tokens) for tokens in self._hypotheses]
        for label, tokens in zip(self.labels, self._hypotheses, strict=True):
            if len(tokens) >= room:
                raise ValueError(
                    f"candidate_labels must leave room for the text: a hypothesis may have {room - 1} "
                    f"tokens, got {len(tokens)} for {label!r:.80}"
                )

    def tokenize(self, texts: Sequence[str], first: int = 0) -> list[Read]:
        """Tokenize each different text once.

        Args:
            texts: any number of them.
            first: number of the first one, for messages.

        Raises:
            TypeError: one is not a str.
            ValueError: one holds a lone surrogate.
        """
        names = check_texts(self.name, texts, first)
        ids = ids_of(texts, self.tokenizer)
        self.truncated += sum(len(ids[text]) > min(self._rooms) for text in texts)
        return [Read(name, text, ids[text]) for name, text in zip(names, texts, strict=True)]

    def size(self, tokens: Read) -> int:
        """Tokens of a text with all hypotheses."""
        if not len(tokens.ids):
            return 0
        kept = np.minimum(len(tokens.ids), self._rooms) + [len(ids) for ids in self._hypotheses]
        return int(kept.sum()) + self._template.pair.size * len(kept)

    def rows(self, tokens: Read) -> list[Row]:
        """A text with every hypothesis; the text is cut, as by truncation "only_first". None without tokens."""
        return [
            self._template.pair.row(self._template.cut(tokens.ids, room), hypothesis)
            for hypothesis, room in zip(self._hypotheses, self._rooms, strict=True)
            if len(tokens.ids)
        ]

    def compute(self, tokens: Sequence[Read]) -> list[Classified]:
        """The labels of each text; none where it has no tokens.

        Raises:
            ValueError: the model's scores are not finite.
        """
        asked = [place for place, text in enumerate(tokens) if len(text.ids)]
        rows = [row for place in asked for row in self.rows(tokens[place])]
        logits = np.zeros((len(asked), len(self.labels), 2))
        batches = self.runner.as_completed(
            rows, lambda batch: self.model(batch, return_dict=True).logits[:, self._columns]
        )
        for indices, found in batches:
            logits.reshape(-1, 2)[indices] = to_numpy(found)
        check_finite(logits, [tokens[place].name for place in asked])
        if self.multi_label or len(self.labels) == 1:
            scores = sigmoid(logits[..., 0] - logits[..., 1])
        else:
            scores = softmax(logits[..., 0])
        results: list[Classified] = [{"sequence": one.text, "labels": [], "scores": []} for one in tokens]
        for place, row in zip(asked, scores, strict=True):
            order = row.argsort(kind="stable")[::-1].tolist()
            results[place] |= {"labels": [self.labels[i] for i in order], "scores": [float(row[i]) for i in order]}
        return results


class ZeroShotClassification:
    """Callable that classifies texts; made by `zero_shot_classification`."""

    def __init__(self, model: Any, tokenizer: Any, batch_tokens: int) -> None:
        check_parts(model, ErnieMForSequenceClassification, tokenizer, batch_tokens)
        columns_of(model)
        self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens

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
        check_eval(self.model)
        texts = list_texts("sequences", sequences)
        task = ZeroShot(
            self.model, self.tokenizer, Runner(self.model, self.batch_tokens), candidate_labels=candidate_labels,
            hypothesis_template=hypothesis_template, multi_label=multi_label, name="sequences",
        )  # fmt: skip
        shown = len(texts) * len(task.labels) > MANY_PAIRS if progress is None else progress
        tokens = tokenize_all(task, texts, shown)
        results: list[Classified] = list(compute_all(task, tokens, "Classifying", shown))
        return results[0] if isinstance(sequences, str) else results


def zero_shot_classification(model: Any, tokenizer: Any, *, batch_tokens: int = 8192) -> ZeroShotClassification:
    """Make a callable that classifies texts by labels chosen at call time, equal to transformers' pipeline.

        classify = zero_shot_classification(model, tokenizer)
        classify(texts, ["travel", "sport"], hypothesis_template="This text is about {}.")

    Args:
        model: a model of natural language inference, ErnieM's or one of a family that `padding_free` has changed; in
            eval mode, on any device; it may carry peft's adapters. Its
            label2id names the label whose name begins with "entail"; else the last one counts, and a warning says so.
        tokenizer: of the model.
        batch_tokens: most tokens of a batch; a longer pair makes a batch alone.

    Returns:
        The callable; `ZeroShotClassification.__call__` describes its arguments.

    Raises:
        TypeError: another class of model or tokenizer.
        ValueError: `batch_tokens` is no whole number of at least 1, or the model has a single label.
    """
    return ZeroShotClassification(model, tokenizer, batch_tokens)


def columns_of(model: Any) -> list[int]:
    """Columns of the logits for entailment and contradiction, as transformers' pipeline finds them.

    A model that names no entailment is warned of, once.

    Raises:
        ValueError: the model has a single label.
    """
    if model.config.num_labels < 2:
        raise ValueError("model must have at least 2 labels, entailment and contradiction, got 1")
    labels = model.config.label2id
    entailment = next((index for label, index in labels.items() if str(label).lower().startswith("entail")), -1)
    if entailment == -1:
        warn_once(
            f"No label of the model begins with 'entail' (config.label2id holds {', '.join(map(str, labels))}): the "
            f"last one is taken for entailment, the first for contradiction."
        )
    return [entailment, -1 if entailment == 0 else 0]


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
        places = [place for _, *place in Formatter().parse(template) if place[0] is not None]
        # Anything else could ask for a width of gigabytes, or for what a str holds.
        if not all(name in ("", "0") and not spec and conversion is None for name, spec, conversion in places):
            raise ValueError("a place is {} or {0}")
        filled = [template.format(label) for label in labels]
    except (ValueError, LookupError) as error:
        raise ValueError(
            f"hypothesis_template must hold {{}} once for the label, got {template!r:.80} ({error})"
        ) from error
    if not places:
        raise ValueError(f"hypothesis_template must hold {{}} in the place of the label, got {template!r:.80}")
    return filled

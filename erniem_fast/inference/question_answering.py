"""Answers to questions, as spans of a context of any length.

answer = question_answering(model, tokenizer)
answer(question="Wo steht der Dom?", context=text)  # {"score": 0.97, "start": 120, "end": 124, "answer": "Köln"}

A long context is cut into overlapping windows of tokens, [CLS] question [SEP] [SEP] window [SEP], and the windows of
all questions are computed in batches without padding. In each window, start and end are probabilities, softmaxes over
[CLS] and the tokens of the context; a span's score is the probability of its first token as the start times that of
its last as the end, and [CLS] to [CLS] is the score of no answer. Of several windows with the same span the best score
counts; of the no-answer scores the lowest, since one window with the answer is enough.

Sources: Devlin et al., arXiv 1810.04805, section 4.2 and 4.3 (spans, no answer); the question-answering pipeline of
transformers 4.x (arguments, scores).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor

from ..modeling import ErnieMForQuestionAnswering
from ..packing import PackedBatch
from .arguments import check_eval, check_head, check_offsets, check_parts, check_text, check_whole, template_of
from .arguments import max_tokens as limit
from .runner import Runner
from .runs import compute_all, tokenize_all
from .scores import check_finite, softmax, to_numpy
from .spans import window_starts
from .tokens import Frame, Row, Tokens, tokens_of

MAX_SEQ_LEN, DOC_STRIDE, MAX_ANSWER_LEN = 384, 128, 15
"""Defaults of transformers 4.x, all in tokens."""
MANY = 64
"""More texts or windows than these show a progress bar unless told otherwise."""


class Answer(TypedDict):
    """An answer.

    Attributes:
        score: probability of the span, in [0, 1].
        start: first character of the answer in the context.
        end: character behind the last one.
        answer: context[start:end]; "" with start and end 0 is no answer.
    """

    score: float
    start: int
    end: int
    answer: str


class Span(NamedTuple):
    """Characters [start, end) of a context, and the probability that they are the answer."""

    score: float
    start: int
    end: int


class Read(NamedTuple):
    """A question and its context as they are read.

    Attributes:
        name: of the question, for messages: "question[3]".
        question: token ids of the question, (length,) int32.
        context: tokens of the context.
        room: most tokens of the context in a window.
        starts: first token of each window.
    """

    name: str
    question: np.ndarray
    context: Tokens
    room: int
    starts: range

    @classmethod
    def of(
        cls, name: str, question: Tokens, context: Tokens, frame: Frame, max_seq_len: int, doc_stride: int | None,
        names: tuple[str, str] = ("max_seq_len", "doc_stride"),
    ) -> "Read":  # fmt: skip
        """Cut a context into windows.

        Args:
            name: of the question, for messages.
            question, context: tokens of both.
            frame: special tokens of a pair.
            max_seq_len, doc_stride: see `QuestionAnswering.__call__`.
            names: of these two, for messages.

        Raises:
            ValueError: the question fills the window, or leaves no more tokens than `doc_stride` to a context that is
                longer.
        """
        asked, length = len(question.ids), len(context.ids)
        most = max_seq_len - frame.size
        room = most - asked
        if room < 1:
            raise ValueError(
                f"{name} must leave room for the context, in {names[0]}={max_seq_len} at most "
                f"{most - 1} tokens, got {asked}: {question.text[:50]!r}"
            )
        stride = min(DOC_STRIDE, room // 2) if doc_stride is None else doc_stride
        if length > room <= stride:
            raise ValueError(
                f"{names[1]} must be less than the {room} tokens that {names[0]}={max_seq_len} leaves to the "
                f"context beside {name}, got {stride}"
            )
        return cls(name, question.ids, context, room, window_starts(length, room, stride))

    def rows(self, frame: Frame) -> list[Row]:
        """The windows, each with the question."""
        ids = self.context.ids
        return [frame.row(self.question, ids[start : start + self.room]) for start in self.starts]

    def offsets(self, start: int) -> np.ndarray:
        """Characters of the tokens of the window that begins with token `start`, (length, 2)."""
        return self.context.offsets[start : start + self.room]


@dataclass(eq=False)
class Found:
    """What the windows of a context hold, as far as they were read.

    Attributes:
        read: the question and its context.
        top_k, max_answer_len: see `QuestionAnswering.__call__`.
        spans: the best spans.
        no_answer: the least score of no answer.
    """

    read: Read
    top_k: int
    max_answer_len: int
    spans: list[Span] = field(default_factory=list)
    no_answer: float = 1.0

    def take(self, start: int, logits: np.ndarray, frame: Frame) -> None:
        """Add a window.

        Args:
            start: its first token of the context.
            logits: (2, length) float64, scores of starts and of ends of its row.
            frame: special tokens of a pair.

        Raises:
            ValueError: a score is not finite.
        """
        offsets = self.read.offsets(start)
        behind = logits.shape[1] - len(frame.specials[2])
        scores = np.concatenate([logits[:, :1], logits[:, behind - len(offsets) : behind]], axis=1)
        check_finite(scores[None], [self.read.name])
        spans, no_answer = best_spans(scores[0], scores[1], offsets, self.top_k, self.max_answer_len)
        self.spans = merge(self.spans + spans, self.top_k)
        self.no_answer = min(self.no_answer, no_answer)

    def answers(self, handle_impossible_answer: bool) -> list[Answer]:
        """The best answers; no answer may be among them if it is to be handled."""
        spans = merge([*self.spans, Span(self.no_answer, 0, 0)], self.top_k) if handle_impossible_answer else self.spans
        text = self.read.context.text
        return [Answer(score=score, start=start, end=end, answer=text[start:end]) for score, start, end in spans]


class Answering:
    """Task: answers to questions from contexts of any length; items are dicts with the keys question and context.

    A result is an `Answer`, or a list of them with `top_k` above 1.

    Args:
        model: a head for question answering, ErnieM's or one of a family that `padding_free` has changed; in eval mode,
            on any device; it may carry peft's adapters.
        tokenizer: of the model, one that gives offsets.
        runner: of the model.
        top_k, doc_stride, max_answer_len, max_seq_len, handle_impossible_answer: see `QuestionAnswering.__call__`.
        max_tokens: most tokens of a row; None: what model and tokenizer take.

    Raises:
        TypeError: another class of model or tokenizer.
        ValueError: a tokenizer without offsets, a number out of range, or a model in training mode.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        runner: Runner,
        *,
        top_k: int = 1,
        doc_stride: int | None = None,
        max_answer_len: int = MAX_ANSWER_LEN,
        max_seq_len: int | None = None,
        handle_impossible_answer: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        check_head(model, ErnieMForQuestionAnswering, tokenizer)
        check_offsets(tokenizer)
        self.model, self.tokenizer, self.runner = model, tokenizer, runner
        self._frame = template_of(model, tokenizer).pair
        most = limit(model, tokenizer, max_tokens)
        self.max_seq_len = min(MAX_SEQ_LEN, most) if max_seq_len is None else max_seq_len
        check_whole("max_seq_len", self.max_seq_len, self._frame.size + 2, most)
        if doc_stride is not None:
            check_whole("doc_stride", doc_stride, 0)
        check_whole("top_k", top_k, 1)
        check_whole("max_answer_len", max_answer_len, 1)
        check_eval(model)
        self.top_k, self.doc_stride, self.max_answer_len = top_k, doc_stride, max_answer_len
        self.handle_impossible_answer = handle_impossible_answer

    def tokenize(self, items: Sequence[Any], first: int | None = 0) -> list[Read]:
        """Tokenize each different text once, and cut contexts into windows.

        Args:
            items: dicts with the keys question and context; other keys are ignored.
            first: number of the first item, for messages; None: there is only one.

        Raises:
            TypeError: an item is no such dict, or one of its texts is not a str.
            ValueError: a text is empty or has a lone surrogate; a question fills the window, or leaves no more tokens
                than `doc_stride` to a context that is longer.
        """
        places = ["" if first is None else f"[{first + place}]" for place in range(len(items))]
        pairs = [pair_of(place, item) for place, item in zip(places, items, strict=True)]
        tokens = tokens_of((text for pair in pairs for text in pair), self.tokenizer)
        read = []
        for place, (question, context) in zip(places, pairs, strict=True):
            for name, text in (("question", question), ("context", context)):
                offsets = tokens[text].offsets
                if not (offsets[:, 0] < offsets[:, 1]).any():
                    raise ValueError(f"{name}{place} must hold text, got {text[:50]!r}")
            read.append(
                Read.of(
                    f"question{place}", tokens[question], tokens[context], self._frame, self.max_seq_len,
                    self.doc_stride,
                )
            )  # fmt: skip
        return read

    def size(self, tokens: Read) -> int:
        """Tokens of all windows of a context, with the question in each."""
        length, around = len(tokens.context.ids), len(tokens.question) + self._frame.size
        return sum(min(tokens.room, length - start) + around for start in tokens.starts)

    def rows(self, tokens: Read) -> list[Row]:
        """The windows of a context, each with the question."""
        return tokens.rows(self._frame)

    def compute(self, tokens: Sequence[Read]) -> list[Any]:
        """The answer to each question, or the answers.

        Raises:
            ValueError: the model's scores are not finite.
        """
        windows = [(place, start) for place, read in enumerate(tokens) for start in read.starts]
        rows = [row for read in tokens for row in self.rows(read)]
        found = [Found(read, self.top_k, self.max_answer_len) for read in tokens]
        for indices, scores in self.runner.as_completed(rows, self._scores):
            ends = list(accumulate(len(rows[index].ids) for index in indices))
            parts = np.split(to_numpy(scores), ends[:-1], axis=1)
            for index, logits in zip(indices, parts, strict=True):
                place, start = windows[index]
                found[place].take(start, logits, self._frame)
        answers = [one.answers(self.handle_impossible_answer) for one in found]
        return [one[0] for one in answers] if self.top_k == 1 else answers

    def _scores(self, batch: PackedBatch) -> Tensor:
        """(2, total_tokens) logits of starts and ends."""
        output = self.model(batch, return_dict=True)
        return torch.stack((output.start_logits[0], output.end_logits[0]))


class QuestionAnswering:
    """Callable that answers questions; made by `question_answering`."""

    def __init__(self, model: Any, tokenizer: Any, batch_tokens: int) -> None:
        check_parts(model, ErnieMForQuestionAnswering, tokenizer, batch_tokens)
        check_offsets(tokenizer)
        self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens

    def __call__(
        self,
        question: str | Mapping[str, Any] | Iterable[str] | Iterable[Mapping[str, Any]],
        context: str | Iterable[str] | None = None,
        *,
        top_k: int = 1,
        doc_stride: int | None = None,
        max_answer_len: int = MAX_ANSWER_LEN,
        max_seq_len: int | None = None,
        handle_impossible_answer: bool = False,
        progress: bool | None = None,
    ) -> Any:
        """Answer one question or many.

        Args:
            question: a question or a list of them; or, without `context`, a dict with the keys "question" and
                "context", or an iterable of such dicts, as a dataset in SQuAD's form is. Other keys are ignored.
            context: a context, or a list of one for each question. A str beside a list serves all of it.
            top_k: most answers to a question.
            doc_stride: tokens of the context that two windows in a row share; None: 128, or half of those that the
                question leaves to the context where that is less.
            max_answer_len: most tokens of an answer.
            max_seq_len: most tokens of a window, its question and 4 special tokens included; None: 384, or what the
                model takes where that is less.
            handle_impossible_answer: let no answer, the `Answer` of no characters, compete with the spans.
            progress: show progress bars on stderr; None: with more than 64 texts or windows.

        Returns:
            To one question (a str with a str, or a dict): an `Answer`, or with `top_k` above 1 a list of them. To
            many: a list of these, in the order of the questions. The best come first; of equal scores that which
            starts first, then the shorter. There are fewer than `top_k` where the context has no more spans.

        Raises:
            TypeError: a question or a context is not a str.
            ValueError: the model is in training mode; a question or a context is empty or has a lone surrogate; there
                are not as many contexts as questions; a question fills the window, or leaves no more tokens than
                `doc_stride` to a context that is longer; another argument that can't be right; or the model's scores
                are not finite.
        """
        task = Answering(
            self.model, self.tokenizer, Runner(self.model, self.batch_tokens), top_k=top_k, doc_stride=doc_stride,
            max_answer_len=max_answer_len, max_seq_len=max_seq_len, handle_impossible_answer=handle_impossible_answer,
        )  # fmt: skip
        items, is_single = items_of(question, context)
        read = task.tokenize(items, None) if is_single else tokenize_all(task, items, _is_shown(progress, len(items)))
        windows = sum(len(one.starts) for one in read)
        results = list(compute_all(task, read, "Answering", _is_shown(progress, windows)))
        return results[0] if is_single else results


def question_answering(model: Any, tokenizer: Any, *, batch_tokens: int = 8192) -> QuestionAnswering:
    """Make a callable that answers questions from contexts of any length, as the pipeline of transformers 4.x did.

        answer = erniem_fast.question_answering(model, tokenizer)
        answer(question="Wo steht der Dom?", context=text)

    Args:
        model: a head for question answering, ErnieM's or one of a family that `padding_free` has changed; in eval mode,
            on any device; it may carry peft's adapters.
        tokenizer: the model's tokenizer, one that gives offsets.
        batch_tokens: most tokens of a batch.

    Returns:
        See `QuestionAnswering.__call__`.

    Raises:
        TypeError: another class of model or tokenizer.
        ValueError: a tokenizer without offsets, a head that takes no packed batches, or `batch_tokens` is no whole
            number of at least 1.
    """
    return QuestionAnswering(model, tokenizer, batch_tokens)


def best_spans(
    start: np.ndarray, end: np.ndarray, offsets: np.ndarray, top_k: int, max_answer_len: int
) -> tuple[list[Span], float]:
    """The best spans of a window, and the score of no answer.

    Args:
        start: (1 + n,) logits of the start: [CLS], then n tokens of the context.
        end: (1 + n,) logits of the end.
        offsets: (n, 2) characters of the tokens.
        top_k: most spans.
        max_answer_len: most tokens of a span.
    """
    start, end = softmax(start), softmax(end)
    no_answer = float(start[0] * end[0])
    start, end, n = start[1:], end[1:], len(offsets)
    first, last = offsets.T
    visible = first < last  # a lone "▁" has no characters, and neither begins nor ends an answer
    sizes = range(min(max_answer_len, n))  # tokens of a span but for the first
    kept = np.concatenate([visible[: n - more] & visible[more:] for more in sizes])
    scores = np.concatenate([start[: n - more] * end[more:] for more in sizes])[kept]
    starts = np.concatenate([first[: n - more] for more in sizes])[kept]
    ends = np.concatenate([last[more:] for more in sizes])[kept]
    count = top_k
    while True:
        # Every span that ties with the last one is kept, so that their order is that of their characters.
        least = np.partition(scores, -count)[-count] if count < len(scores) else 0.0
        kept = scores >= least
        spans = merge(map(Span, scores[kept].tolist(), starts[kept].tolist(), ends[kept].tolist()), top_k)
        if len(spans) == top_k or count >= len(scores):
            return spans, no_answer
        count *= 4  # tokens of one character make the same span


def merge(spans: Iterable[Span], top_k: int) -> list[Span]:
    """The `top_k` best of different spans: by score, then by first and last character."""
    best: dict[tuple[int, int], Span] = {}
    for span in sorted(spans, key=lambda span: (-span.score, span.start, span.end)):
        best.setdefault((span.start, span.end), span)
        if len(best) == top_k:
            break
    return list(best.values())


def _is_shown(progress: bool | None, count: int) -> bool:
    return count > MANY if progress is None else progress


def pair_of(place: str, item: Any) -> tuple[str, str]:
    """Question and context of an item, checked.

    Args:
        place: of the item, for messages: "[3]".
        item: a dict with the keys question and context.
    """
    if not isinstance(item, Mapping) or not {"question", "context"} <= item.keys():
        raise ValueError(
            f"question{place} must be a dict with the keys question and context where "
            f"no context is given, got {sorted(map(str, item)) if isinstance(item, Mapping) else type(item).__name__}"
        )
    for name in ("question", "context"):
        check_text(f"{name}{place}", item[name])
    return item["question"], item["context"]


def items_of(question: Any, context: Any) -> tuple[list[Any], bool]:
    """Dicts of a question and a context, and whether the caller gave one and not a list."""
    if context is None:
        if isinstance(question, str):
            raise ValueError("context must be given with question, got None")
        is_single = isinstance(question, Mapping)
        return ([question] if is_single else _list("question", question)), is_single
    is_single = isinstance(question, str) and isinstance(context, str)
    questions = [question] if isinstance(question, str) else _list("question", question)
    contexts = [context] if isinstance(context, str) else _list("context", context)
    if isinstance(question, str):
        questions *= len(contexts)
    elif isinstance(context, str):
        contexts *= len(questions)
    if len(questions) != len(contexts):
        raise ValueError(f"question and context must be lists of one length, got {len(questions)} and {len(contexts)}")
    return [{"question": one, "context": other} for one, other in zip(questions, contexts, strict=True)], is_single


def _list(name: str, values: Any) -> list[Any]:
    if isinstance(values, Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a str or a list, got {type(values).__name__}")
    return list(values)

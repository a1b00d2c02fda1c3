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
from typing import Any, NamedTuple, TypedDict

import numpy as np

from ..modeling import ErnieMForQuestionAnswering
from ..packing import PackedBatch
from ..tokenization import ErnieMTokenizer
from .arguments import check_eval, check_parts, check_text, check_whole, max_tokens
from .batching import as_completed
from .tokens import SPECIAL_TOKENS, join_pair, tokenize_in_chunks

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


class Tokens(NamedTuple):
    """A text's token ids, (length,) int32, and their characters, (length, 2)."""

    ids: np.ndarray
    offsets: np.ndarray


class Window(NamedTuple):
    """A part of a context with its question.

    Attributes:
        pair: number of the question.
        ids: tokens of the window, special ones included.
        offsets: (n, 2) characters of its n tokens of the context, which lie before the last [SEP].
    """

    pair: int
    ids: np.ndarray
    offsets: np.ndarray


class QuestionAnswering:
    """Callable that answers questions; made by `question_answering`."""

    def __init__(self, model: ErnieMForQuestionAnswering, tokenizer: ErnieMTokenizer, batch_tokens: int) -> None:
        check_parts(model, ErnieMForQuestionAnswering, tokenizer, batch_tokens)
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
        limit = max_tokens(self.model, self.tokenizer)
        max_seq_len = min(MAX_SEQ_LEN, limit) if max_seq_len is None else max_seq_len
        check_whole("max_seq_len", max_seq_len, SPECIAL_TOKENS + 2, limit)
        if doc_stride is not None:
            check_whole("doc_stride", doc_stride, 0)
        check_whole("top_k", top_k, 1)
        check_whole("max_answer_len", max_answer_len, 1)
        check_eval(self.model)

        pairs, is_single = _pairs(question, context)
        tokens = self._tokenize(pairs, is_single, progress)
        windows = self._windows(pairs, tokens, is_single, max_seq_len, doc_stride)
        spans: list[list[Span]] = [[] for _ in pairs]
        no_answer = [1.0] * len(pairs)
        for window, start, end in self._logits(windows, progress):
            if not (np.isfinite(start).all() and np.isfinite(end).all()):
                name = _item("question", window.pair, is_single)
                raise ValueError(f"model must give finite scores, got NaN or infinity for {name}")
            found, none = best_spans(start, end, window.offsets, top_k, max_answer_len)
            spans[window.pair] = merge(spans[window.pair] + found, top_k)
            no_answer[window.pair] = min(no_answer[window.pair], none)

        if handle_impossible_answer:
            spans = [merge([*some, Span(none, 0, 0)], top_k) for some, none in zip(spans, no_answer, strict=True)]
        answers = [
            [Answer(score=score, start=start, end=end, answer=text[start:end]) for score, start, end in some]
            for (_, text), some in zip(pairs, spans, strict=True)
        ]
        results = [some[0] for some in answers] if top_k == 1 else answers
        return results[0] if is_single else results

    def _tokenize(self, pairs: Sequence[tuple[str, str]], is_single: bool, progress: bool | None) -> dict[str, Tokens]:
        """Tokens of each different text."""
        names: dict[str, str] = {}
        for place, (question, context) in enumerate(pairs):
            names.setdefault(question, _item("question", place, is_single))
            names.setdefault(context, _item("context", place, is_single))
        tokens = {}
        chunks = tokenize_in_chunks(
            list(names), self.tokenizer, _is_shown(progress, len(names)),
            add_special_tokens=False, return_offsets_mapping=True,
        )  # fmt: skip
        for texts, found in chunks:
            for text, ids, spans in zip(texts, found["input_ids"], found["offset_mapping"], strict=True):
                offsets = np.array(spans, dtype=np.int64).reshape(-1, 2)
                if not (offsets[:, 0] < offsets[:, 1]).any():
                    raise ValueError(f"{names[text]} must hold text, got {text[:50]!r}")
                tokens[text] = Tokens(np.array(ids, dtype=np.int32), offsets)
        return tokens

    def _windows(
        self,
        pairs: Sequence[tuple[str, str]],
        tokens: Mapping[str, Tokens],
        is_single: bool,
        max_seq_len: int,
        doc_stride: int | None,
    ) -> list[Window]:
        """The windows of every pair, in order."""
        windows = []
        for pair, (question, context) in enumerate(pairs):
            asked, read = tokens[question].ids, tokens[context]
            room = max_seq_len - SPECIAL_TOKENS - len(asked)
            name = _item("question", pair, is_single)
            if room < 1:
                raise ValueError(
                    f"{name} must leave room for the context, in max_seq_len={max_seq_len} at most "
                    f"{max_seq_len - SPECIAL_TOKENS - 1} tokens, got {len(asked)}: {question[:50]!r}"
                )
            stride = min(DOC_STRIDE, room // 2) if doc_stride is None else doc_stride
            if len(read.ids) > room <= stride:
                raise ValueError(
                    f"doc_stride must be less than the {room} tokens that max_seq_len={max_seq_len} leaves to the "
                    f"context beside {name}, got {stride}"
                )
            for first in window_starts(len(read.ids), room, stride):
                part = slice(first, first + room)
                ids = join_pair(self.tokenizer, asked, read.ids[part])
                windows.append(Window(pair, ids, read.offsets[part]))
        return windows

    def _logits(
        self, windows: Sequence[Window], progress: bool | None
    ) -> Iterable[tuple[Window, np.ndarray, np.ndarray]]:
        """Each window, batch by batch, with its start and end logits: of [CLS], then of the tokens of its context."""

        def compute(batch: PackedBatch) -> list[np.ndarray]:
            output = self.model(batch, return_dict=True)
            starts, ends = output.start_logits[0].double().cpu().numpy(), output.end_logits[0].double().cpu().numpy()
            return np.split(np.stack([starts, ends]), batch.cu_seqlens[1:-1].cpu().numpy(), axis=1)

        batches = as_completed(
            [window.ids for window in windows], compute, self.batch_tokens, self.model.device,
            "Answering" if _is_shown(progress, len(windows)) else None,
        )  # fmt: skip
        for indices, logits in batches:
            for index, scores in zip(indices, logits, strict=True):
                window = windows[index]
                length = len(window.offsets)
                start, end = np.concatenate([scores[:, :1], scores[:, -1 - length : -1]], axis=1)
                yield window, start, end


def question_answering(
    model: ErnieMForQuestionAnswering, tokenizer: ErnieMTokenizer, *, batch_tokens: int = 8192
) -> QuestionAnswering:
    """Make a callable that answers questions from contexts of any length, as the pipeline of transformers 4.x did.

        answer = erniem_fast.question_answering(model, tokenizer)
        answer(question="Wo steht der Dom?", context=text)

    Args:
        model: in eval mode, on any device; it may carry peft's adapters.
        tokenizer: the model's tokenizer.
        batch_tokens: most tokens of a batch.

    Returns:
        See `QuestionAnswering.__call__`.

    Raises:
        TypeError: another class of model or tokenizer.
        ValueError: `batch_tokens` is no whole number of at least 1.
    """
    return QuestionAnswering(model, tokenizer, batch_tokens)


def window_starts(length: int, room: int, stride: int) -> range:
    """First tokens of windows of `room` tokens that overlap by `stride` and cover `length` tokens."""
    return range(0, max(length - stride, 1), max(room - stride, 1))


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
    start, end = _softmax(start), _softmax(end)
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


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def _pairs(question: Any, context: Any) -> tuple[list[tuple[str, str]], bool]:
    """Pairs of a question and a context, and whether the caller gave one and not a list."""
    if context is None:
        if isinstance(question, str):
            raise ValueError("context must be given with question, got None")
        is_single = isinstance(question, Mapping)
        rows = [question] if is_single else _items("question", question)
        for place, row in enumerate(rows):
            if not isinstance(row, Mapping) or not {"question", "context"} <= row.keys():
                raise ValueError(
                    f"{_item('question', place, is_single)} must be a dict with the keys question and context where "
                    f"no context is given, got {sorted(row) if isinstance(row, Mapping) else type(row).__name__}"
                )
        questions, contexts = [row["question"] for row in rows], [row["context"] for row in rows]
    else:
        is_single = isinstance(question, str) and isinstance(context, str)
        questions = [question] if isinstance(question, str) else _items("question", question)
        contexts = [context] if isinstance(context, str) else _items("context", context)
        if isinstance(question, str):
            questions *= len(contexts)
        elif isinstance(context, str):
            contexts *= len(questions)
        if len(questions) != len(contexts):
            raise ValueError(
                f"question and context must be lists of one length, got {len(questions)} and {len(contexts)}"
            )
    for name, texts in (("question", questions), ("context", contexts)):
        for place, text in enumerate(texts):
            check_text(_item(name, place, is_single), text)
    return list(zip(questions, contexts, strict=True)), is_single


def _items(name: str, values: Any) -> list[Any]:
    if isinstance(values, Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a str or a list, got {type(values).__name__}")
    return list(values)


def _item(name: str, place: int, is_single: bool) -> str:
    return name if is_single else f"{name}[{place}]"

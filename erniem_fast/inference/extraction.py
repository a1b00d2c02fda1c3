"""Information extraction by a UIE model: from texts and a schema to spans of the texts.

extract = information_extraction(model, tokenizer)
extract(["2月8日上午谷爱凌以188.25分获得金牌！"], ["时间", {"选手": "得分"}])

Each level of the schema is one pass: its questions about all texts go through the model together, without padding.
Behaviour: PaddleNLP's Taskflow("information_extraction").
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from numbers import Real
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from ..modeling import ErnieMForInformationExtraction
from ..packing import PackedBatch
from ..tokenization import ErnieMTokenizer
from ..validation import warn_once
from .arguments import check_eval, check_head, check_parts, check_texts, check_whole, list_texts, template_of
from .arguments import max_tokens as limit
from .progress import progress_bar
from .runner import Runner
from .runs import windows_of
from .schema import LANGUAGES, Node, Prompt, parse_schema, prompt_of
from .scores import sigmoid, to_numpy
from .spans import Answer, Question, Window, windows
from .tokens import Row, Tokens, tokens_of

Result = dict[str, list[Answer]]
"""Answers about a text by the names of a schema; names without answers are absent."""

TEXTS_PER_PASS = 256
CHARACTERS_PER_PASS = 2**20
MANY_CHARACTERS = 10_000
"""Longer texts, taken together, show a progress bar unless told otherwise."""


class Place(NamedTuple):
    """Where answers go.

    Attributes:
        text: number of the text.
        owner: the text's result, or the answer that is asked about.
        parent: text of that answer; None at the first level.
        nodes: names to ask for.
    """

    text: int
    owner: dict[str, Any]
    parent: str | None
    nodes: tuple[Node, ...]


Asked = tuple[Place, Node, Prompt]
Questions = dict[tuple[int, Prompt], Question]


class Extraction:
    """Task: what a schema names, found in texts by a UIE model; see `InformationExtraction.__call__`.

    Args:
        model: in eval mode, on any device; it may carry peft's adapters.
        tokenizer: of the model.
        runner: of the model.
        schema, language, threshold, stride: see `InformationExtraction.__call__`.
        max_tokens: most tokens of a row; None: what model and tokenizer take.

    Raises:
        TypeError, ValueError: another model or tokenizer, a model in training mode, or an argument that is not as
            described.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        runner: Runner,
        *,
        schema: Any,
        language: str = "zh",
        threshold: float = 0.5,
        stride: int = 128,
        max_tokens: int | None = None,
    ) -> None:
        check_head(model, ErnieMForInformationExtraction, tokenizer)
        check_eval(model)
        if language not in LANGUAGES:
            raise ValueError(f"language must be one of {', '.join(LANGUAGES)}, got {language!r}")
        if not _is_below_one(threshold):
            raise ValueError(f"threshold must be a number of at least 0 and below 1, got {threshold!r}")
        check_whole("stride", stride, 0)
        self.model, self.tokenizer, self.runner = model, tokenizer, runner
        self.language, self.threshold, self.stride = language, float(threshold), stride
        self._frame = template_of(model, tokenizer).pair
        self.max_tokens = limit(model, tokenizer, max_tokens)
        self.nodes = parse_schema(schema)
        self._check_names(self.nodes)
        first = [prompt_of(node, None, language).text for node in self.nodes]
        self._prompt_sizes = [len(tokens.ids) for tokens in tokens_of(first, tokenizer).values()]

    @property
    def longest_prompt(self) -> int:
        """Most tokens of a prompt: half of a row is left to the text."""
        return self.max_tokens // 2 - self._frame.size

    def _check_names(self, nodes: tuple[Node, ...]) -> None:
        prompts = {node: prompt_of(node, None, LANGUAGES[0]).text for node in nodes}
        tokens = tokens_of(prompts.values(), self.tokenizer)
        for node, prompt in prompts.items():
            length = len(tokens[prompt].ids)
            if not 0 < length <= self.longest_prompt:
                raise ValueError(
                    f"schema has the name {node.name!r:.80}, of {length} tokens; "
                    f"expected names of 1 to {self.longest_prompt} tokens"
                )
            self._check_names(node.children)

    def tokenize(self, texts: Sequence[str], first: int = 0) -> list[Tokens]:
        """Tokenize each different text once.

        Args:
            texts: any number of them.
            first: number of the first one, for messages.

        Raises:
            TypeError: one is not a str.
            ValueError: one holds a lone surrogate.
        """
        check_texts("texts", texts, first)
        tokens = tokens_of(texts, self.tokenizer)
        return [tokens[text] for text in texts]

    def size(self, tokens: Tokens) -> int:
        """Tokens of a text with the names of the schema's first level; nobody knows how many come below."""
        return sum(
            window.stop - window.start + around
            for around in (size + self._frame.size for size in self._prompt_sizes)
            for window in windows(len(tokens.ids), self.max_tokens - around, self.stride)
            if len(tokens.ids)
        )

    def compute(self, tokens: Sequence[Tokens]) -> list[Result]:
        """What each text holds.

        Raises:
            ValueError: the model gives NaN.
        """
        results: list[Result] = [{} for _ in tokens]
        for _ in self.fill(results, tokens):
            pass
        return results

    def fill(self, results: list[Result], tokens: Sequence[Tokens]) -> Iterator[float]:
        """Write answers into the results, one level after the other. Yields each batch's share of its level."""
        places = [Place(index, result, None, self.nodes) for index, result in enumerate(results)]
        while places:
            asked = [
                (place, node, prompt_of(node, place.parent, self.language)) for place in places for node in place.nodes
            ]
            questions = self._questions(asked, tokens)
            yield from self._ask(list(questions.values()))
            places = list(_give(asked, questions))

    def _questions(self, asked: list[Asked], tokens: Sequence[Tokens]) -> Questions:
        """A question for each text and prompt, however many ask it."""
        tokenized = tokens_of((prompt.text for _, _, prompt in asked), self.tokenizer)
        room, longest = self.max_tokens - self._frame.size, self.longest_prompt
        questions: Questions = {}
        for place, _, prompt in asked:
            text, prompt_tokens = tokens[place.text], tokenized[prompt.text]
            length = len(prompt_tokens.ids)
            if length > longest:
                warn_once(f"Spans whose prompts would have more than {longest} tokens are not asked about.")
            elif len(text.ids) and (place.text, prompt) not in questions:
                parts = windows(len(text.ids), room - length, self.stride)
                questions[place.text, prompt] = Question(text, prompt, prompt_tokens, parts, self.threshold)
        return questions

    def _ask(self, questions: list[Question]) -> Iterator[float]:
        """Put questions to the model. Yields each batch's share of all tokens."""
        asked = [(question, window) for question in questions for window in question.windows]
        sizes = [
            self._frame.size + len(question.prompt_tokens.ids) + window.stop - window.start
            for question, window in asked
        ]
        total = sum(sizes)
        for part in windows_of(sizes):
            here = asked[part]
            rows = [self._row(question, window) for question, window in here]
            for indices, logits in self.runner.as_completed(rows, self._scores):
                ends = list(accumulate(len(rows[index].ids) for index in indices))
                for index, row in zip(indices, np.split(_probabilities(logits), ends[:-1], axis=1), strict=True):
                    question, window = here[index]
                    before, between, after = map(len, self._frame.specials)
                    prompt_end = before + len(question.prompt_tokens.ids)
                    text = row[:, prompt_end + between : row.shape[1] - after]
                    question.take(window, row[:, before:prompt_end], text)
                yield ends[-1] / total

    def _row(self, question: Question, window: Window) -> Row:
        return self._frame.row(question.prompt_tokens.ids, question.tokens.ids[window.start : window.stop])

    def _scores(self, batch: PackedBatch) -> Tensor:
        """(2, total_tokens) logits of starts and ends."""
        output = self.model(batch, return_dict=True)
        return torch.stack((output.start_logits[0], output.end_logits[0]))


class InformationExtraction:
    """Callable that finds spans in texts; made by `information_extraction`."""

    def __init__(self, model: ErnieMForInformationExtraction, tokenizer: ErnieMTokenizer, batch_tokens: int) -> None:
        check_parts(model, ErnieMForInformationExtraction, tokenizer, batch_tokens)
        self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is an iterable of str, too
        self, texts: str, schema: Any, *, language: str = ..., threshold: float = ..., stride: int = ...,
        progress: bool | None = ...,
    ) -> Result: ...  # fmt: skip
    @overload
    def __call__(
        self, texts: Iterable[str], schema: Any, *, language: str = ..., threshold: float = ..., stride: int = ...,
        progress: bool | None = ...,
    ) -> list[Result]: ...  # fmt: skip
    def __call__(
        self,
        texts: str | Iterable[str],
        schema: Any,
        *,
        language: str = "zh",
        threshold: float = 0.5,
        stride: int = 128,
        progress: bool | None = None,
    ) -> Result | list[Result]:
        """Find in each text what a schema names.

        The model reads a prompt and the text, and gives each token the probabilities that an answer starts and ends
        there. Those above the threshold are boundaries, and each end makes a span with the nearest start at or before
        it, if no other end lies between. A prompt is a name of the schema or, below a name, "X的Y" or "Y of X" for
        each span X that was found; the same X is asked about once a text.

        A name with options, `name[a,b]`, gives one of them: that in which the span lies, in the prompt.

        A text that is too long for the model is read in overlapping windows. Each token counts in the window in whose
        middle it lies most, and spans are made of the boundaries of all windows: no span comes twice, and none of at
        most `stride` tokens is cut. Windows vote for an option.

        Args:
            texts: one or more texts, in any language and of any length; an empty one has an empty result.
            schema: a name, a list of names and dicts, or a dict whose values are schemas, None where there are none.
            language: of the prompts, "zh" or "en".
            threshold: what the probabilities of a start and of an end must exceed, in [0, 1).
            stride: tokens that consecutive windows share at least; at most half a window is.
            progress: show a progress bar on stderr; None: with more than 10,000 characters.

        Returns:
            A dict for each text; to a str the dict itself. It leads from the names that have answers, in the schema's
            order, to these, in the text's order. An answer is a dict: `text`, `start` and `end` with text ==
            texts[i][start:end], `probability`, the product of both boundaries', and `relations`, where names below
            have answers, a dict like the whole. The answer to a name with options has neither `start` nor `end`.

        Raises:
            TypeError, ValueError: an argument that is not as described; a name without tokens, or of more than nearly
                half of the model's; a model in training mode, or one that gives NaN.
        """
        results = self.stream(texts, schema, language=language, threshold=threshold, stride=stride, progress=progress)
        found = list(results)
        return found[0] if isinstance(texts, str) else found

    def stream(
        self,
        texts: str | Iterable[str],
        schema: Any,
        *,
        language: str = "zh",
        threshold: float = 0.5,
        stride: int = 128,
        progress: bool | None = None,
    ) -> Iterator[Result]:
        """Yield the result of each text, of one text too, so that the results need not fit into memory.

        Args, Raises: see `__call__`; arguments are checked at once.
        """
        check_eval(self.model)
        texts = list_texts("texts", texts)
        task = Extraction(
            self.model, self.tokenizer, Runner(self.model, self.batch_tokens), schema=schema, language=language,
            threshold=threshold, stride=stride,
        )  # fmt: skip
        shown = sum(map(len, texts)) > MANY_CHARACTERS if progress is None else progress
        return self._results(task, texts, shown)

    def _results(self, task: Extraction, texts: list[str], progress: bool) -> Iterator[Result]:
        with progress_bar(len(texts), "Extracting", " texts", progress) as bar:
            done, levels = 0, _levels(task.nodes)
            for part in _parts(texts):
                results: list[Result] = [{} for _ in part]
                for share in task.fill(results, task.tokenize(part, done)):
                    bar.update(share * len(part) / levels)
                done += len(part)
                bar.update(done - bar.n)  # levels that nothing was asked at
                yield from results


def _is_below_one(threshold: object) -> bool:
    return isinstance(threshold, Real) and not isinstance(threshold, bool) and 0 <= threshold < 1  # type: ignore[operator]


def _probabilities(logits: Any) -> np.ndarray:
    """(2, total_tokens) float64."""
    probabilities = sigmoid(to_numpy(logits))
    if np.isnan(probabilities).any():
        raise ValueError("model must give finite scores, got NaN: from its weights, or a dtype that is too small")
    return probabilities


def _parts(texts: list[str]) -> Iterator[list[str]]:
    """Texts in order, so many at once that their tokens fit into memory."""
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and (len(part) == TEXTS_PER_PASS or characters + len(text) > CHARACTERS_PER_PASS):
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text)
    if part:
        yield part


def _levels(nodes: tuple[Node, ...]) -> int:
    return 1 + max(_levels(node.children) for node in nodes) if nodes else 0


def _give(asked: list[Asked], questions: Questions) -> Iterator[Place]:
    """Hand the answers to who asked. Yields what is to be asked about them."""
    found = {key: question.answers() for key, question in questions.items()}
    for place, node, prompt in asked:
        # Who asks the same gets answers of its own, which further answers are written into.
        answers = [dict(answer) for answer in found.get((place.text, prompt), [])]
        if answers:
            owner = place.owner if place.parent is None else place.owner.setdefault("relations", {})
            owner[node.name] = answers
        if node.children:
            yield from (Place(place.text, answer, answer["text"], node.children) for answer in answers)


def information_extraction(
    model: ErnieMForInformationExtraction, tokenizer: ErnieMTokenizer, *, batch_tokens: int = 8192
) -> InformationExtraction:
    """Make a callable that finds in texts what a schema names, by a UIE model.

        extract = information_extraction(model, tokenizer)
        extract(texts, {"Person": ["Birthplace", "Friend"]}, language="en")

    Args:
        model: in eval mode, on any device; it may carry peft's adapters.
        tokenizer: of the model.
        batch_tokens: most tokens of a batch.

    Returns:
        The callable; `InformationExtraction.__call__` describes its arguments.

    Raises:
        TypeError: another model or tokenizer; models of `erniem_fast.reference` do not take packed batches.
        ValueError: `batch_tokens` is no whole number of at least 1.
    """
    return InformationExtraction(model, tokenizer, batch_tokens)

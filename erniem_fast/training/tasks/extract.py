"""Information extraction by a UIE model: where the spans that a prompt asks for start and end.

Source: Lu et al., arXiv 2203.12277, as spans of prompt and text, in PaddleNLP's form of files.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from transformers import EvalPrediction

from ...files.rows import ROWS, BadLines
from ...files.source import Source
from ...inference.arguments import check_whole
from ...inference.schema import LANGUAGES, Node, Prompt, half_width, parse_schema, prompt_of
from ...inference.scores import sigmoid
from ...inference.spans import Question, Window, windows
from ...inference.tokens import PairTemplate, Tokens
from ...losses import IGNORED
from .base import Feature, text_of, value_of
from .characters import has_characters, token_span
from .tokenized import TokenizedTask

ACCEPTED = {
    "jsonl": "expected UTF-8 JSON Lines, objects with content, prompt and result_list, or with text and result",
    "parquet": ROWS["parquet"],
}
"""What each format must be, by its name."""
THRESHOLD = 0.5
"""What the probabilities of a start and of an end must exceed; default of inference, too."""
STRIDE = 128
"""Tokens that two windows share at least; default of inference, too."""

Characters = tuple[int, int]


@dataclass(eq=False)
class Asked:
    """A prompt about a text, and the answers.

    Attributes:
        prompt: the prompt.
        spans: characters [start, end) of the text.
        options: places of the right ones among the prompt's options.
    """

    prompt: Prompt
    spans: set[Characters] = field(default_factory=set)
    options: set[int] = field(default_factory=set)

    @property
    def answers(self) -> set[Any]:
        """Options of a prompt that has some, else spans."""
        return {self.prompt.names[option] for option in self.options} if self.prompt.options else self.spans


class Example(NamedTuple):
    """A text, and what is asked about it.

    Attributes:
        text: the text.
        asked: prompts, each once; one without answers is a negative example.
        tokens: of the text and of each prompt, by the text; empty until the file is read.
    """

    text: str
    asked: tuple[Asked, ...]
    tokens: Mapping[str, Tokens]


class Extraction(TokenizedTask[Example]):
    """Task: spans of texts, for UIE's prompts.

    Texts of any length are read in windows, as `Encoder.extract` reads them. In a window that cuts a span, the part of
    it that is left counts neither for nor against a boundary.

    Args:
        tokenizer: of the model.
        max_length: most tokens of a window, its prompt and special tokens included.
        schema: names that are asked about in every text of the form text and result; those without an answer there are
            negative examples. None: only names that have answers are asked about.
        language: of the prompts about relations, "zh" or "en".
        stride: tokens that two windows share at least; at most half a window is.
    """

    name = "extract"
    head = "ForInformationExtraction"
    kinds = ACCEPTED
    label_names = ("start_positions", "end_positions")
    unit = "texts"
    best_metric = "f1"

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        schema: Any = None,
        language: str = LANGUAGES[0],
        stride: int = STRIDE,
    ) -> None:
        super().__init__(tokenizer, max_length)
        self.check_offsets()
        if language not in LANGUAGES:
            raise ValueError(f"language must be one of {', '.join(LANGUAGES)}, got {language!r}")
        check_whole("stride", stride, 0)
        self.nodes = () if schema is None else parse_schema(schema)
        self.language, self.stride = language, stride
        self._frame = PairTemplate.of(tokenizer).pair
        self.check_max_length(self._frame, 2 * (self._frame.size + 1))  # prompts take half at most

    def read(self, source: Source, bad: BadLines) -> list[Example]:
        examples = super().read(source, bad)
        if not any(example.asked for example in examples):
            raise source.error("asks about nothing: there are no answers, and no --schema")
        return examples

    def texts(self, example: Example) -> list[str]:
        return [example.text, *(asked.prompt.text for asked in example.asked)]

    def tokenized(self, example: Example, tokens: Mapping[str, Tokens]) -> Example:
        self._check_tokens(example, tokens)
        return example._replace(tokens={text: tokens[text] for text in self.texts(example)})

    def _check_tokens(self, example: Example, tokens: Mapping[str, Tokens]) -> None:
        where = f"the text {example.text[:50]!r}"
        offsets = tokens[example.text].offsets
        if not has_characters(offsets):
            raise ValueError(f"{where} has no tokens")
        longest = self.max_length // 2 - self._frame.size
        for asked in example.asked:
            length = len(tokens[asked.prompt.text].ids)
            if not 0 < length <= longest:
                raise ValueError(
                    f"{where} has the prompt {asked.prompt.text[:50]!r} of {length} tokens, not of 1 to {longest}, "
                    f"half of max_length={self.max_length}"
                )
            for start, end in asked.spans:
                if token_span(offsets, start, end) is None:
                    raise ValueError(f"{where} has the span {example.text[start:end]!r}, which is no token")

    def example(self, record: Any) -> Example:
        """A text of one record.

        Either PaddleNLP's form: content, prompt and result_list of dicts with text, start and end, which count
        characters of content or, where they are negative, of prompt and one more before it. Or text and result, as
        `Encoder.extract` gives it.
        """
        if "content" in record:
            text = text_of(record, "content")
            asked = [self._of_prompt(text, text_of(record, "prompt"), value_of(record, "result_list"))]
        else:
            text = text_of(record, "text")
            found: dict[str, Asked] = {}
            for prompt, answers in self._of_result(value_of(record, "result"), self.nodes, None):
                one = found.setdefault(prompt.text, Asked(prompt))
                for answer in answers:
                    _add(one, text, answer)
            asked = list(found.values())
        return Example(text, tuple(asked), {})

    def _of_prompt(self, text: str, prompt: str, answers: Any) -> Asked:
        """A prompt as a file has it."""
        if not isinstance(answers, list):
            raise ValueError(f"has 'result_list' of type {type(answers).__name__}, not a list")
        asked = Asked(prompt_of(parse_schema(prompt)[0], None, self.language))
        stripped = len(prompt) - len(prompt.lstrip())
        for answer in answers:
            start, end = _places(answer)
            if start >= 0:
                _add(asked, text, answer)
                continue
            shift = len(prompt) + 1 - stripped
            place = (start + shift, end + shift)
            if place not in asked.prompt.options:
                raise ValueError(f"has the option {answer.get('text')!r:.80} at {start}, where the prompt holds none")
            asked.options.add(asked.prompt.options.index(place))
        return asked

    def _of_result(
        self, result: Any, nodes: tuple[Node, ...], parent: str | None
    ) -> Iterator[tuple[Prompt, list[dict[str, Any]]]]:
        """Prompts and their answers, of one level and those below."""
        if not isinstance(result, dict):
            raise ValueError(f"has 'result' or 'relations' of type {type(result).__name__}, not an object")
        known = {node.name: node for node in nodes}
        unknown = {name: None for name in result if name not in known}
        if unknown and self.nodes:
            raise ValueError(f"has the name {next(iter(unknown))!r:.80}, which the schema does not have there")
        for node in (*nodes, *(parse_schema(unknown) if unknown else ())):
            answers = result.get(node.name, [])
            if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
                raise ValueError(f"has {node.name!r:.80}, whose answers are no list of objects")
            yield prompt_of(node, parent, self.language), answers
            for answer in answers:
                if node.children or answer.get("relations"):
                    yield from self._of_result(answer.get("relations", {}), node.children, str(answer.get("text")))

    def features(self, examples: Sequence[Example], training: bool) -> list[Feature]:
        found = []
        for index, example in enumerate(examples):
            for place, asked in enumerate(example.asked):
                tokens, prompt = example.tokens[example.text], example.tokens[asked.prompt.text]
                for window in self._windows(tokens, prompt):
                    row = self._frame.row(prompt.ids, tokens.ids[window.start : window.stop])
                    starts, ends = self._labels(asked, tokens, prompt, window)
                    feature: Feature = {
                        "input_ids": row.ids.tolist(), "start_positions": starts.tolist(),
                        "end_positions": ends.tolist(), "example": index, "asked": place, "window": window,
                    }  # fmt: skip
                    if row.types is not None:
                        feature["token_type_ids"] = row.types.tolist()
                    found.append(feature)
        return found

    def _windows(self, tokens: Tokens, prompt: Tokens) -> list[Window]:
        return windows(len(tokens.ids), self.max_length - self._frame.size - len(prompt.ids), self.stride)

    def _labels(self, asked: Asked, tokens: Tokens, prompt: Tokens, window: Window) -> np.ndarray:
        """(2, length) starts and ends in the row of a window."""
        before, between, after = map(len, self._frame.specials)
        text = before + len(prompt.ids) + between
        labels = np.zeros((2, text + window.stop - window.start + after))
        for option in asked.options:
            span = token_span(prompt.offsets, *asked.prompt.options[option])
            if span is not None:
                labels[0, before + span[0]] = labels[1, before + span[1]] = 1
        whole: list[np.ndarray] = []
        cut: list[np.ndarray] = []
        for start, end in asked.spans:
            span = token_span(tokens.offsets, start, end)
            if span is not None and span[0] < window.stop and span[1] >= window.start:
                inside = span[0] >= window.start and span[1] < window.stop
                (whole if inside else cut).append(np.array(span) - window.start + text)
        for first, last in cut:
            labels[:, max(first, text) : min(last + 1, labels.shape[1] - after)] = IGNORED
        for first, last in whole:
            labels[0, first] = labels[1, last] = 1
        return labels

    def answers(
        self, predictions: Any, examples: Sequence[Example], features: Sequence[Feature]
    ) -> list[list[set[Any]]]:
        """What `Encoder.extract` finds for each prompt of each text: characters [start, end), or the option.

        Args:
            predictions: scores of starts and of ends, (num_windows, seq_len or more) each.
            examples, features: see `metrics`.
        """
        starts, ends = (np.asarray(one, np.float64) for one in predictions)
        questions = [[self._question(example, asked) for asked in example.asked] for example in examples]
        before, between, after = map(len, self._frame.specials)
        for feature, start, end in zip(features, starts, ends, strict=True):
            question = questions[feature["example"]][feature["asked"]]
            length = len(feature["input_ids"])
            row = sigmoid(np.stack((start[:length], end[:length])))
            prompt_end = before + len(question.prompt_tokens.ids)
            question.take(feature["window"], row[:, before:prompt_end], row[:, prompt_end + between : length - after])
        return [[_found(question) for question in asked] for asked in questions]

    def _question(self, example: Example, asked: Asked) -> Question:
        tokens, prompt = example.tokens[example.text], example.tokens[asked.prompt.text]
        return Question(tokens, asked.prompt, prompt, self._windows(tokens, prompt), THRESHOLD)

    def metrics(
        self, predictions: EvalPrediction, examples: Sequence[Example], features: Sequence[Feature]
    ) -> dict[str, float]:
        """Precision, recall and F1 of answers: a span counts if both its ends are right. 1 where there are none."""
        found = self.answers(predictions.predictions, examples, features)
        pairs = [
            (answers, asked.answers)
            for example, of_example in zip(examples, found, strict=True)
            for answers, asked in zip(of_example, example.asked, strict=True)
        ]
        right = sum(len(answers & expected) for answers, expected in pairs)
        given, wanted = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
        return {
            "precision": right / given if given else float(not wanted),
            "recall": right / wanted if wanted else 1.0,
            "f1": 2 * right / (given + wanted) if given + wanted else 1.0,
        }


def _found(question: Question) -> set[Any]:
    """Answers of a question that all windows were taken of."""
    answers = question.answers()
    if question.prompt.options:
        return {answer["text"] for answer in answers}
    return {(answer["start"], answer["end"]) for answer in answers}


def _places(answer: Any) -> Characters:
    """Start and end of an answer."""
    places = (answer.get("start"), answer.get("end")) if isinstance(answer, dict) else (None, None)
    start, end = places
    if not isinstance(start, int) or not isinstance(end, int) or start >= end:
        raise ValueError(f"has the answer {answer!r:.120}; expected an object with text, start and a greater end")
    return start, end


def _add(asked: Asked, text: str, answer: dict[str, Any]) -> None:
    """Add an answer to those of a prompt."""
    name = answer.get("text")
    if asked.prompt.options:
        options = [half_width(option) for option in asked.prompt.names]
        if not isinstance(name, str) or half_width(name) not in options:
            raise ValueError(f"has the answer {name!r:.80} to {asked.prompt.text!r:.80}, which is none of its options")
        asked.options.add(options.index(half_width(name)))
        return
    start, end = _places(answer)
    held = text[max(start, 0) : end]
    if held != name or start < 0 or not held.strip():
        raise ValueError(f"has the span {name!r:.80} at {start} to {end}, where the text holds {held[:80]!r}")
    stripped = start + len(held) - len(held.lstrip()), start + len(held.rstrip())
    asked.spans.add(stripped)

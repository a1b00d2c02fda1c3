"""Token classification: a tag for each word, or the entities of texts.

Words are tokenized one by one, and the first token of each has its tag, as the authors of ERNIE-M fine-tune; in scripts
without spaces, where `erniem-fast tag` is given no words, all tokens are trained. Texts with entities at characters are
tokenized as they are, and each token has a tag.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from transformers import EvalPrediction

from ...files.errors import InputError
from ...files.rows import ROWS, BadLines, Row, read_rows
from ...files.source import Source
from ...inference.spans import windows
from ...inference.tagging import STRIDE
from ...inference.tokens import PairTemplate, ids_of, tokens_of
from ...losses import IGNORED
from .alignment import Span, Tagged, of_text, of_words, read_spans, spaced
from .base import Feature, FineTuningTask, Head, text_of, value_of
from .conll import CHUNK, OUTSIDE, read_sentences, to_iob2
from .labels import Labels, places, settle_labels, unlearned

CONLL = "expected UTF-8 CoNLL: a word with its tag in each line, a blank line behind each sentence"
WORDS, TAGS, NUMBERED_TAGS = "tokens", "tags", "ner_tags"
TEXT, ENTITIES = "text", "entities"
"""Columns unless told otherwise."""
KINDS = {
    **dict.fromkeys(("conll", "txt", "tsv", "bio", "iob", "iob2"), CONLL),
    "conllu": "expected UTF-8 CoNLL-U: ten columns separated by tabs, a blank line behind each sentence",
    "jsonl": ROWS["jsonl"],
    "parquet": ROWS["parquet"],
}
SPACE = "▁"
"""Piece of a SentencePiece vocabulary that stands for the space before a word alone."""


class Example(NamedTuple):
    """A sentence of words, or a text.

    Attributes:
        words: the words, or the text.
        tags: one a word, in IOB2; or the text's entities in order.
    """

    words: tuple[str, ...] | str
    tags: tuple[str, ...] | tuple[Span, ...]


class Tagging(FineTuningTask[Example]):
    """Task: tags of words.

    Tags of entities, in whatever scheme (see `conll`), become IOB2, which is what transformers' pipeline and
    `erniem-fast tag` read. Others, such as parts of speech, stay what they are.

    A sentence of more than `max_length` tokens is read in windows. Each token is learned and judged once, in the window
    in whose middle it lies most.

    Args:
        tokenizer, max_length: see `FineTuningTask`.
        word_column: in CoNLL files the number of the column of words, from 1; None: the first, in CoNLL-U the second.
            In others the name of a column with lists of words; None: "tokens".
        tag_column: likewise, of tags; None: the last, in CoNLL-U the fourth; "tags" or "ner_tags".
        text_column, entities_column: of records with texts instead: lists of {"start": ..., "end": ..., "label": ...}.
            None: "text" and "entities", read where a record has no words; one that is named is read from all.
        tag_names: names of tags that the data has as numbers, from 0.
        stride: tokens that windows share; at most half a window is.
    """

    name = "tag"
    head = "ForTokenClassification"
    kinds = KINDS
    unit = "sentences"
    best_metric = "f1"

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        word_column: str | None = None,
        tag_column: str | None = None,
        text_column: str | None = None,
        entities_column: str | None = None,
        tag_names: Sequence[str] | None = None,
        stride: int = STRIDE,
    ) -> None:
        super().__init__(tokenizer, max_length)
        of_words, of_texts = word_column or tag_column, text_column or entities_column
        if of_words and of_texts:
            raise InputError(
                f"{'--text-column' if text_column else '--entities-column'} {of_texts!r}: not with "
                f"{'--word-column' if word_column else '--tag-column'} {of_words!r}; expected words or texts"
            )
        self.word_column, self.tag_column = word_column, tag_column
        self.text_column, self.entities_column = text_column, entities_column
        self.tag_names, self.stride = tag_names, stride
        self.of_entities: bool | None = None  # None: no tag but O was seen yet
        self.labels = Labels((), {})
        self._frame = PairTemplate.of(tokenizer).single
        self.check_max_length(self._frame)

    def records(self, source: Source, bad: BadLines) -> Iterator[tuple[int | None, Row]]:
        if source.kind in ("jsonl", "parquet"):
            yield from read_rows(source, bad)
            return
        columns = (_number("word_column", self.word_column), _number("tag_column", self.tag_column))
        for sentence in read_sentences(source, bad, *columns):
            is_entity = self.of_entities
            try:
                for line in sentence:
                    is_entity = _kind(is_entity, line.tag)
            except ValueError as error:
                bad.add(source.error(f"{error}", line.number))
                continue
            words, tags = [line.word for line in sentence], [line.tag for line in sentence]
            yield sentence[0].number, {self.word_column or WORDS: words, self.tag_column or TAGS: tags}

    def example(self, record: Row) -> Example:
        words = self.word_column or WORDS
        of_texts = self.text_column or self.entities_column
        if of_texts or (self.word_column is None and WORDS not in record and TEXT in record):
            text = text_of(record, self.text_column or TEXT, self.text_column and "--text-column")
            spans = self._spans(text, record)
            self.of_entities = True
            return Example(text, spans)
        named = self.tag_column or (NUMBERED_TAGS if TAGS not in record and NUMBERED_TAGS in record else TAGS)
        tokens = value_of(record, words, self.word_column and "--word-column")
        tags = value_of(record, named, self.tag_column and "--tag-column")
        for column, value in ((words, tokens), (named, tags)):
            if not isinstance(value, list):
                raise ValueError(f"has {column!r} of type {type(value).__name__}, not a list")
        for word in tokens:
            text_of({words: word}, words)
        tags = [self._name(named, tag) for tag in tags]
        is_entity = self.of_entities
        for tag in tags:
            is_entity = _kind(is_entity, tag)
        if not tokens or len(tokens) != len(tags):
            raise ValueError(f"has {len(tokens)} {words!r} and {len(tags)} {named!r}; expected as many of both")
        self.of_entities = is_entity  # a line that is bad does not decide
        return Example(tuple(tokens), tuple(to_iob2(tags) if is_entity else tags))

    def _name(self, column: str, tag: Any) -> str:
        if isinstance(tag, str) and tag:
            return tag
        if isinstance(tag, bool) or not isinstance(tag, int):
            raise ValueError(f"has {tag!r:.80} in {column!r}, not a tag")
        if self.tag_names is None:
            raise ValueError(f"has numbers in {column!r}, whose names are needed: --tag-names O,B-PER,...")
        if not 0 <= tag < len(self.tag_names):
            raise ValueError(f"has {tag} in {column!r}, of {len(self.tag_names)} --tag-names")
        return self.tag_names[tag]

    def _spans(self, text: str, record: Row) -> tuple[Span, ...]:
        column = self.entities_column or ENTITIES
        entities = value_of(record, column, self.entities_column and "--entities-column")
        _kind(self.of_entities, "B-entity")
        if not self.tokenizer.is_fast:
            raise ValueError("has a text with entities, which needs a tokenizer that gives the characters of tokens")
        return read_spans(column, text, entities)

    def fit(self, train: Sequence[Example], dev: Sequence[Example], head: Head | None) -> None:
        learned, evaluated = _names(train), _names(dev)
        self.notes += unlearned(learned, evaluated)
        found = learned | evaluated | ({OUTSIDE} if self.of_entities else set())
        if not self.of_entities and found <= {OUTSIDE}:
            raise InputError("TRAIN: no word has a tag but 'O'; expected some")
        if head is not None:
            self.labels = settle_labels(found, head.labels)
            self.notes += places(self.labels)
            return
        kinds = sorted({tag[2:] for tag in found if tag != OUTSIDE}) if self.of_entities else []
        names = [OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")] if kinds else sorted(found)
        self.labels = Labels(tuple(names), {name: number for number, name in enumerate(names)})

    def config_changes(self) -> dict[str, Any]:
        return self.labels.config_changes()

    def features(self, examples: Sequence[Example], training: bool) -> list[Feature]:
        frame, room = self._frame, self.max_length - self._frame.size
        found: list[Feature] = []
        long = 0
        for number, tagged in enumerate(self._tagged(examples)):
            labels = self._labels(tagged, training)
            cuts = windows(len(tagged.ids), room, self.stride)
            long += len(cuts) > 1
            for cut in cuts:
                row = frame.row(tagged.ids[cut.start : cut.stop])
                own = np.full(len(row.ids), IGNORED)
                first = len(frame.specials[0]) + cut.first - cut.start
                own[first : first + cut.last - cut.first] = labels[cut.first : cut.last]
                units = tagged.unit[cut.first : cut.last]
                feature: Feature = {
                    "input_ids": row.ids.tolist(), "labels": own.tolist(),
                    "example": number, "tags": tagged.tags, "units": units[units >= 0].tolist(),
                }  # fmt: skip
                if row.types is not None:
                    feature["token_type_ids"] = row.types.tolist()
                found.append(feature)
        if long:
            self.notes.append(
                f"{long} of {len(examples)} {self.unit} have more than {self.max_length} tokens and are read in windows"
            )
        return found

    def _labels(self, tagged: Tagged, training: bool) -> np.ndarray:
        """(length,) int64, of each token the number of the tag that it has to tell, or -100."""
        numbers = self.labels.numbers
        firsts = np.array([numbers[tag] for tag in tagged.tags] + [IGNORED])  # [-1]: no tag
        labels = firsts[tagged.unit]
        if training:
            going_on = [f"I-{tag[2:]}" if self.of_entities and tag != OUTSIDE else tag for tag in tagged.tags]
            inner = np.array([numbers.get(tag, IGNORED) for tag in going_on] + [IGNORED])
            labels = np.where(tagged.inner >= 0, inner[tagged.inner], labels)
        return labels

    def _tagged(self, examples: Sequence[Example]) -> Iterator[Tagged]:
        """Tokens and tags of each example."""
        space = self.tokenizer.convert_tokens_to_ids(SPACE)
        space = None if space == self.tokenizer.unk_token_id else space
        inexact = entities = 0
        for block in self.tracked(examples, "Tokenizing"):
            texts = tokens_of((one.words for one in block if isinstance(one.words, str)), self.tokenizer)
            sentences = (spaced(one.words) for one in block if not isinstance(one.words, str))
            ids = ids_of((word for sentence in sentences for word in sentence), self.tokenizer)
            for example in block:
                if isinstance(example.words, str):
                    tagged, wrong = of_text(texts[example.words], cast(tuple[Span, ...], example.tags))
                    inexact, entities = inexact + wrong, entities + len(example.tags)
                else:
                    words = spaced(example.words)
                    tagged = of_words(words, [ids[word] for word in words], cast(tuple[str, ...], example.tags), space)
                yield tagged
        if inexact:
            self.notes.append(f"{inexact} of {entities} entities begin or end within a token, which counts as theirs")

    def metrics(
        self, predictions: EvalPrediction, examples: Sequence[Example], features: Sequence[Feature]
    ) -> dict[str, float]:
        """Precision, recall and F1 of entities, by seqeval as the script conlleval counts them, and accuracy of words.

        Plain tags count as entities of one word. A word that has no token is predicted to be outside of entities.
        """
        from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

        expected: list[list[str]] = [[] for _ in examples]
        found: list[list[str]] = [[] for _ in examples]
        chosen = np.asarray(predictions.predictions).argmax(-1)
        for row, feature in zip(chosen, features, strict=True):
            example, labels = feature["example"], np.array(feature["labels"])
            if not expected[example]:
                expected[example] = feature["tags"]
                found[example] = [OUTSIDE] * len(feature["tags"])
            for unit, number in zip(feature["units"], row[: len(labels)][labels != IGNORED].tolist(), strict=True):
                found[example][unit] = self.labels.names[number]
        figures = {"accuracy": accuracy_score(expected, found) if any(expected) else 0.0}
        if not self.of_entities:
            expected, found = ([[f"S-{tag}" for tag in tags] for tags in side] for side in (expected, found))
        figures |= {
            "precision": precision_score(expected, found, zero_division=0),
            "recall": recall_score(expected, found, zero_division=0),
            "f1": f1_score(expected, found, zero_division=0),
        }
        return {name: float(value) for name, value in figures.items()}


def _kind(is_entity: bool | None, tag: str) -> bool | None:
    """Whether tags are of entities, by one more of them.

    Args:
        is_entity: by those before; None: there was none but O.
        tag: the next one.

    Raises:
        ValueError: they are mixed.
    """
    if tag == OUTSIDE:
        return is_entity
    is_chunk = CHUNK.fullmatch(tag) is not None
    if is_entity not in (None, is_chunk):
        kind = "an entity's" if is_entity else "a plain tag"
        raise ValueError(
            f"has the tag {tag!r:.80}, the first tag of the data is {kind}; expected B-..., I-... or O everywhere, "
            f"or none of them"
        )
    return is_chunk


def _names(examples: Sequence[Example]) -> set[str]:
    """All tags of examples."""
    tags = (tag for example in examples for tag in example.tags)
    return {
        name for tag in tags for name in ((f"B-{tag.label}", f"I-{tag.label}") if isinstance(tag, Span) else (tag,))
    }


def _number(name: str, value: str | None) -> int | None:
    """Number of a column of a CoNLL file."""
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise InputError(
            f"--{name.replace('_', '-')} {value!r}: expected the number of a column, from 1, in CoNLL files"
        )
    return int(value)

"""Tagging: CoNLL files and texts with entities, tags on tokens in many scripts, windows, and seqeval's figures."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import family_folders, golden_tokenizer
from helpers.documents import TEXTS
from helpers.tagged import SENTENCES
from helpers.task_files import read
from hypothesis import given
from hypothesis import strategies as st
from transformers import EvalPrediction

from erniem_fast.files.errors import InputError
from erniem_fast.training.tasks.base import Head, HeadMismatchError
from erniem_fast.training.tasks.conll import to_iob2
from erniem_fast.training.tasks.tag import Example, Tagging

IGNORED = -100
HAN = next(text for text in TEXTS if text.startswith(("我", "他", "你", "这", "她")))[:60]
EXAMPLES = [Example(tuple(words), tuple(tags)) for words, tags in SENTENCES]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return golden_tokenizer.build()


@pytest.fixture
def task(tokenizer: Any) -> Tagging:
    return Tagging(tokenizer, 512)


def fitted(task: Tagging, examples: list[Example] = EXAMPLES) -> Tagging:
    task.of_entities = True
    task.fit(examples, [], None)
    return task


CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
call NN I-NP O

Jean NNP I-NP I-PER
Paul NNP B-NP B-PER
# NN I-NP O
"""
SPACE_OF_HAN = "\u3000"
UNIVERSAL = """# newdoc
# text = Vom Haus O
1-2\tVom\t_\t_\t_\t_\t_\t_\t_\t_
1\tVon\tvon\tADP\t_\t_\t_\t_\t_\t_
2\tdem\tder\tDET\t_\t_\t_\t_\t_\t_
3\tHaus\tHaus\tNOUN\t_\t_\t_\t_\t_\t_
3.1\tist\tsein\tVERB\t_\t_\t_\t_\t_\t_
"""
FILES = {
    "columns of 2003": (
        "a.conll", CONLL_2003, {},
        [(("EU", "rejects", "German", "call"), ("B-ORG", "O", "B-MISC", "O")),
         (("Jean", "Paul", "#"), ("B-PER", "B-PER", "O"))],
    ),
    "another column": (
        "a.txt", CONLL_2003, {"tag_column": "3"},
        [(("EU", "rejects", "German", "call"), ("B-NP", "B-VP", "B-NP", "I-NP")),
         (("Jean", "Paul", "#"), ("B-NP", "B-NP", "I-NP"))],
    ),
    "a character a line": (
        "a.bio", f"# id 1\n王 B-PER\n小 M-PER\n明 E-PER\n{SPACE_OF_HAN} O\n京 S-LOC\n \n住 O\n", {},
        [(("王", "小", "明", SPACE_OF_HAN, "京"), ("B-PER", "I-PER", "I-PER", "O", "B-LOC")), (("住",), ("O",))],
    ),
    "tabs, other line ends, gzip": (
        "a.tsv.gz", "فاطمة الزهراء\tB-PER\r\n#تعيش\tO\r\n\r\n\r\n# \tO\r\n", {},
        [(("فاطمة الزهراء", "#تعيش"), ("B-PER", "O")), (("# ",), ("O",))],
    ),
    "spaces behind tags": (
        "a.conll", "Marie\tB-PER \nCurie\tI-PER\nin\tO \n\nUlm\tB-LOC\n", {},
        [(("Marie", "Curie", "in"), ("B-PER", "I-PER", "O")), (("Ulm",), ("B-LOC",))],
    ),
    "parts of speech": ("a.conllu", UNIVERSAL, {}, [(("Von", "dem", "Haus"), ("ADP", "DET", "NOUN"))]),
    "records": (
        "a.jsonl", '{"tokens": ["a", "b"], "ner_tags": [1, 2]}\n\n{"tokens": ["c"], "ner_tags": [0]}\n',
        {"tag_names": ["O", "B-X", "I-X"]}, [(("a", "b"), ("B-X", "I-X")), (("c",), ("O",))],
    ),
    "other columns": (
        "a.jsonl", '{"w": ["a"], "t": ["U-X"]}\n', {"word_column": "w", "tag_column": "t"}, [(("a",), ("B-X",))],
    ),
    "entities": (
        "a.jsonl", json.dumps({"text": "住在 北京 ", "entities": [{"start": 2, "end": 6, "label": "LOC"}]}), {},
        [("住在 北京 ", ((3, 5, "LOC"),))],
    ),
    "entities beside words": (
        "a.jsonl", json.dumps({"body": "住在北京", "tokens": ["住"], "tags": ["O"], "text": "no", "entities": [],
                               "found": [{"start": 2, "end": 4, "label": "LOC"}]}),
        {"text_column": "body", "entities_column": "found"}, [("住在北京", ((2, 4, "LOC"),))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_files_are_read(tokenizer: Any, tmp_path: Path, case: str) -> None:
    name, text, options, expected = FILES[case]
    found, _ = read(Tagging(tokenizer, 64, **options), tmp_path / name, text)
    assert found == expected


GOOD = '{"tokens": ["a"], "tags": ["B-X"]}\n'
BAD = {
    "a missing column": ("a.conll", "a O\nb\nc O\n\nd B-X\n", "line 2 has 1 column, not 2 or more"),
    "a column too many": ("a.conll", "a O\n\nd B-X\nb c O\n", "line 4 has 3 columns, the sentence's first 2"),
    "an empty tag": ("a.tsv", "a\tB-X\n\nb\t\n", "line 3 has an empty column"),
    "a tag of spaces": ("a.tsv", "a\tB-X\n\nb\t \n", "line 3 has an empty column"),
    "a tag of another kind": ("a.conll", "a B-X\n\nb O\nc NOUN\n", "line 4 has the tag 'NOUN', the first tag of the"),
    "a NUL": ("a.conll", "a B-X\n\nb\0 O\n", "line 3 holds a NUL character"),
    "uneven lists": ("a.jsonl", GOOD + '{"tokens": ["a"], "tags": []}', "line 2 has 1 'tokens' and 0"),
    "a column that is not there": ("a.jsonl", GOOD + '{"tokens": ["a"], "pos": ["X"]}', "line 2 has no 'tags': it has"),
    "no list": ("a.jsonl", GOOD + '{"tokens": "a", "tags": []}', "line 2 has 'tokens' of type str"),
    "no words": ("a.jsonl", GOOD + '{"tags": []}', "line 2 has no 'tokens': it has 'tags'"),
    "a word that is none": ("a.jsonl", GOOD + '{"tokens": [1], "tags": ["O"]}', "line 2 has 'tokens' of"),
    "numbers": ("a.jsonl", GOOD + '{"tokens": ["b"], "tags": [1]}', "line 2 has numbers in 'tags'"),
    "an entity behind the end": (
        "a.jsonl", GOOD + '{"text": "ab", "entities": [{"start": 1, "end": 3, "label": "X"}]}',
        "line 2 has an entity from 1 to 3 that is no part of the text of 2 characters",
    ),
    "entities that overlap": (
        "a.jsonl", GOOD + '{"text": "abc", "entities": [{"start": 1, "end": 3, "label": "X"}, '
        '{"start": 0, "end": 2, "label": "Y"}]}',
        "line 2 has entities that overlap: (0, 2, 'Y') and (1, 3, 'X')",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_column": "body"}, r"line 1 has no 'body' \(--text-column\): it has 'text'"),
        ({"entities_column": "found"}, r"line 1 has no 'found' \(--entities-column\): it has 'text'"),
        ({"word_column": "w"}, r"line 1 has no 'w' \(--word-column\): it has 'text'"),
        ({"tag_column": "t"}, r"line 1 has no 't' \(--tag-column\): it has 'text'"),
    ],
)
def test_a_column_that_was_named_is_read_or_missed(tokenizer: Any, tmp_path: Path, options: Any, message: str) -> None:
    line = json.dumps({"text": "a", "entities": [], "tokens": ["a"], "tags": ["O"]})
    with pytest.raises(InputError, match=message):
        read(Tagging(tokenizer, 64, **options), tmp_path / "a.jsonl", line)


def test_words_or_texts(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="--entities-column 'e': not with --tag-column 't'; expected words or texts"):
        Tagging(tokenizer, 64, tag_column="t", entities_column="e")


@pytest.mark.parametrize("case", BAD)
def test_bad_lines_are_named_or_counted(tokenizer: Any, tmp_path: Path, case: str) -> None:
    name, text, message = BAD[case]
    with pytest.raises(InputError) as caught:
        read(Tagging(tokenizer, 64), tmp_path / name, text)
    assert f"TRAIN {str(tmp_path / name)!r}: {message}" in str(caught.value)
    found, bad = read(Tagging(tokenizer, 64), tmp_path / name, text, skip=True)
    assert bad.count == 1
    (example,) = found  # the sentence with the bad line is left out as a whole
    assert len(example.tags) == 1


PLAIN_FIRST = {
    "uneven lists": ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["NOUN"]}\n' + GOOD),
    "a word that is none": ("a.jsonl", '{"tokens": ["a", 1], "tags": ["NOUN", "O"]}\n' + GOOD),
    "mixed tags": ("a.conll", "a NOUN\nb B-X\n\na B-X\n"),
    "a NUL": ("a.conll", "a\0 NOUN\n\na B-X\n"),
}
SPANS_FIRST = '{"text": "a", "entities": [{"start": 0, "end": 9, "label": "X"}]}\n{"tokens": ["a"], "tags": ["NOUN"]}\n'


@pytest.mark.parametrize("case", PLAIN_FIRST)
def test_a_bad_first_line_does_not_decide_the_kind_of_tags(tokenizer: Any, tmp_path: Path, case: str) -> None:
    name, text = PLAIN_FIRST[case]
    found, bad = read(Tagging(tokenizer, 64), tmp_path / name, text, skip=True)
    assert (found, bad.count) == ([Example(("a",), ("B-X",))], 1)
    found, bad = read(Tagging(tokenizer, 64), tmp_path / "b.jsonl", SPANS_FIRST, skip=True)
    assert (found, bad.count) == ([Example(("a",), ("NOUN",))], 1)


def test_what_holds_no_sentence_is_refused(task: Tagging, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no sentences"):
        read(task, tmp_path / "a.conll", "\n \n-DOCSTART- O\n")
    with pytest.raises(InputError, match="--tag-column 'x': expected the number of a column"):
        read(Tagging(task.tokenizer, 64, tag_column="x"), tmp_path / "a.conll", "a O\n")


def encoded(entities: list[tuple[int, str]], scheme: str) -> list[str]:
    """Tags of runs of words, each of a length and of a kind, "" outside of entities."""
    tags: list[str] = []
    before = ""
    for length, kind in entities:
        if not kind:
            tags += ["O"] * length
        elif scheme == "IOB1":
            tags += [f"{'B' if before == kind else 'I'}-{kind}", *[f"I-{kind}"] * (length - 1)]
        elif scheme == "IOB2":
            tags += [f"B-{kind}", *[f"I-{kind}"] * (length - 1)]
        else:
            first, inner, last, only = scheme
            tags += (
                [f"{only}-{kind}"]
                if length == 1
                else [f"{first}-{kind}", *[f"{inner}-{kind}"] * (length - 2), f"{last}-{kind}"]
            )
        before = kind
    return tags


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["", "PER", "LOC-x"]))))
def test_every_scheme_becomes_iob2(entities: list[tuple[int, str]]) -> None:
    expected = encoded(entities, "IOB2")
    for scheme in ("IOB1", "IOB2", "BIES", "BILU", "BMEW"):
        assert to_iob2(encoded(entities, scheme)) == expected


def labelled(task: Tagging, example: Example, training: bool = False) -> tuple[list[int], list[str | None]]:
    """Ids and tags of an example's one feature."""
    (feature,) = task.features([example], training)
    names = [None if label == IGNORED else task.labels.names[label] for label in feature["labels"]]
    assert len(names) == len(feature["input_ids"])
    return feature["input_ids"], names


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.words[0])
def test_the_first_token_of_a_word_has_its_tag(tokenizer: Any, task: Tagging, example: Example) -> None:
    ids, names = labelled(fitted(task), example)
    encoding = tokenizer(list(example.words), is_split_into_words=True)
    assert ids == encoding["input_ids"]
    words = encoding.word_ids(0)
    expected = [
        None if word is None or word == before else example.tags[word] for before, word in pairwise([None, *words])
    ]
    assert names == expected


@pytest.mark.slow
@pytest.mark.parametrize("family", family_folders.FAMILIES)
def test_words_of_other_families_have_the_tokens_of_their_text(family: str) -> None:
    """With spaces in most scripts, and none between the characters of a Chinese sentence."""
    tokenizer = family_folders.tokenizer(family)
    task = fitted(Tagging(tokenizer, 512))
    for example in EXAMPLES:
        text = " ".join(example.words)
        if example.words[0] in ("田中", "สมชาย"):
            continue
        if example.words[0] == "王":
            if family == "XLM":  # which cuts a sentence as one word
                continue
            text = HAN
            example = Example(tuple(text), ("O",) * len(text))
        ids, names = labelled(task, example)
        assert ids == tokenizer(text)["input_ids"], text
        empty = [word for word in example.words if not tokenizer(word, add_special_tokens=False)["input_ids"]]
        assert [name for name in names if name] == [
            tag for word, tag in zip(example.words, example.tags, strict=True) if word not in empty
        ]


def test_characters_of_han_have_the_tokens_of_their_text(tokenizer: Any, task: Tagging) -> None:
    assert len(HAN) > 5
    example = Example(tuple(HAN), tuple(["B-X", "I-X"] + ["O"] * (len(HAN) - 2)))
    ids, names = labelled(fitted(task, [example]), example)
    assert ids == tokenizer(HAN)["input_ids"]
    assert names == [None, *example.tags, None]


SPANS = [
    ("Ada Lovelace lived in London, not far from Hyde Park.", ["Ada Lovelace", "London", "Hyde Park"]),
    ("王小明住在北京市，2019年来的。", ["王小明", "北京市"]),
    ("تعيش فاطمة الزهراء في الدار البيضاء.", ["فاطمة الزهراء", "الدار البيضاء"]),
    ("สมชายอยู่ที่เชียงใหม่", ["สมชาย"]),
    ("Анна Ахматова жила в Санкт-Петербурге.", ["Анна Ахматова", "Санкт-Петербурге"]),
]


@pytest.mark.parametrize(("text", "names"), SPANS)
def test_entities_of_texts_lie_on_their_tokens(tokenizer: Any, task: Tagging, text: str, names: list[str]) -> None:
    """Put together again, as the pipeline does it, tokens give the entities; every token of the text has a tag."""
    spans = [(text.index(name), text.index(name) + len(name), "X") for name in names]
    entities = [dict(zip(("start", "end", "label"), span, strict=True)) for span in spans]
    example = task.example({"text": text, "entities": entities})
    task.fit([example], [], None)
    ids, tags = labelled(task, example)
    encoding = tokenizer(text, return_offsets_mapping=True)
    assert ids == encoding["input_ids"]
    found: list[list[int]] = []
    for (start, end), tag in zip(encoding["offset_mapping"][1:-1], tags[1:-1], strict=True):
        assert tag is not None
        if tag[0] == "B":
            found.append([start, end])
        elif tag[0] == "I":
            found[-1][1] = end
    assert found == [[start, end] for start, end, _ in spans]
    assert not task.notes


def test_all_tokens_of_words_without_spaces_are_trained(tokenizer: Any, task: Tagging) -> None:
    """There texts are read token by token, for want of words; of other scripts the first token of a word alone is."""
    fitted(task)
    found = {}
    for example in EXAMPLES:
        ids, tags = labelled(task, example, training=True)
        tokens = zip(tokenizer.convert_ids_to_tokens(ids), tags, strict=True)
        found[example.words[0]] = [(token, tag) for token, tag in tokens if tag != "O"][1:-1]
    assert found["王"] == [
        ("王", "B-PER"),
        ("小", "I-PER"),
        ("明", "I-PER"),
        ("北", "B-LOC"),
        ("京", "I-LOC"),
        ("市", "I-LOC"),
    ]
    assert found["田中"] == [("田", "B-PER"), ("中", "I-PER"), ("横", "B-LOC"), ("[UNK]", "I-LOC")]
    arabic = next(example for example in EXAMPLES if "فاطمة" in example.words)
    assert [tag for _, tag in found["تعيش"] if tag] == [tag for tag in arabic.tags if tag != "O"]
    assert any(tag is None for _, tag in found["تعيش"])


def test_an_entity_within_a_token_is_counted(task: Tagging) -> None:
    example = task.example({"text": "London", "entities": [{"start": 1, "end": 3, "label": "X"}]})
    task.fit([example], [], None)
    _, tags = labelled(task, example)
    assert tags[1] == "B-X"
    assert task.notes == ["1 of 1 entities begin or end within a token, which counts as theirs"]


def long_example() -> Example:
    """A sentence of 230 words in twelve scripts, among them one without tokens."""
    words = tuple(word for words, _ in SENTENCES for word in words) * 2
    return Example(words, tuple(tag for _, tags in SENTENCES for tag in tags) * 2)


@pytest.mark.parametrize(("max_length", "stride"), [(32, 8), (33, 128), (16, 0), (64, 31)])
def test_each_word_counts_in_one_window(tokenizer: Any, max_length: int, stride: int) -> None:
    example = long_example()
    task = fitted(Tagging(tokenizer, max_length, stride=stride), [example])
    features = task.features([example], False)
    whole, names = labelled(fitted(Tagging(tokenizer, 10_000), [example]), example)
    assert len(features) > 3
    assert task.notes == [f"1 of 1 sentences have more than {max_length} tokens and are read in windows"]
    units = [unit for feature in features for unit in feature["units"]]
    assert sorted(units) == units
    tokenless = {number for number, word in enumerate(example.words) if word == "\u200b"}
    assert set(units) == set(range(len(example.words))) - tokenless
    assert len(units) == len(set(units))
    share, room = min(stride, (max_length - 2) // 2), max_length - 2
    for number, feature in enumerate(features):
        ids, labels = feature["input_ids"], feature["labels"]
        assert len(ids) == len(labels) == max_length
        assert [ids[0], ids[-1]] == [whole[0], whole[-1]]
        places = [place - 1 for place, label in enumerate(labels) if label != IGNORED]
        # A word has half of what windows share beside it, but at the ends of the text.
        assert number == 0 or places[0] >= share // 2
        assert number == len(features) - 1 or places[-1] < room - share // 2
    found = [task.labels.names[label] for one in features for label in one["labels"] if label != IGNORED]
    assert found == [name for name in names if name]


def predictions(task: Tagging, features: list[dict[str, Any]], wrong: dict[tuple[int, int], str]) -> EvalPrediction:
    """What a model would give that tells all tags but some: of an example's word another one."""
    width = max(len(feature["input_ids"]) for feature in features)
    logits = np.full((len(features), width, len(task.labels.names)), -100.0, np.float32)
    for row, feature in zip(logits, features, strict=True):
        row[: len(feature["labels"])] = np.random.default_rng(3).normal(size=(len(feature["labels"]), row.shape[1]))
        units = iter(feature["units"])
        for place, label in enumerate(feature["labels"]):
            if label != IGNORED:
                told = wrong.get((feature["example"], next(units)))
                row[place, label if told is None else task.labels.numbers[told]] = 9.0
    return EvalPrediction(predictions=logits, label_ids=np.zeros(len(features)))


@pytest.mark.parametrize("max_length", [512, 24])
def test_figures_of_entities(tokenizer: Any, max_length: int) -> None:
    examples = [
        Example(("a", "b", "c"), ("B-X", "I-X", "O")),
        Example(("d", "e", "f"), ("B-X", "B-Y", "O")),
        long_example(),
    ]
    examples[2] = Example(examples[2].words, ("O",) * len(examples[2].words))
    task = fitted(Tagging(tokenizer, max_length, stride=4), examples)
    features = task.features(examples, False)
    words = sum(len(example.words) for example in examples)
    right = task.metrics(predictions(task, features, {}), examples, features)
    assert right == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    # Of three entities the first is cut short and the third found, one more is made up: 2 of 4 told, 2 of 3 there are.
    wrong = {(0, 1): "O", (2, 100): "I-Y"}
    found = task.metrics(predictions(task, features, wrong), examples, features)
    assert found == pytest.approx({
        "accuracy": 1 - 2 / words, "precision": 2 / 4, "recall": 2 / 3, "f1": 2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3)
    })  # fmt: skip
    nothing = {(0, 0): "O", (0, 1): "O", (1, 0): "O", (1, 1): "O"}
    found = task.metrics(predictions(task, features, nothing), examples, features)
    assert found == {"accuracy": pytest.approx(1 - 4 / words), "precision": 0, "recall": 0, "f1": 0}


def test_a_word_without_tokens_is_told_to_be_outside(tokenizer: Any) -> None:
    examples = [Example(("a", "\u200b"), ("B-X", "I-X"))]
    task = fitted(Tagging(tokenizer, 64), examples)
    features = task.features(examples, False)
    assert features[0]["units"] == [0]
    assert task.metrics(predictions(task, features, {}), examples, features)["recall"] == 0


def test_plain_tags_count_word_by_word(tokenizer: Any, tmp_path: Path) -> None:
    task = Tagging(tokenizer, 64)
    examples, _ = read(task, tmp_path / "a.conllu", UNIVERSAL)
    task.fit(examples, [], None)
    assert task.labels.names == ("ADP", "DET", "NOUN")
    features = task.features(examples, False)
    found = task.metrics(predictions(task, features, {(0, 1): "NOUN"}), examples, features)
    assert found == pytest.approx(dict.fromkeys(("accuracy", "precision", "recall", "f1"), 2 / 3))


def test_tags_that_are_evaluated_alone_are_named(tokenizer: Any) -> None:
    task = Tagging(tokenizer, 64)
    task.fit([Example(("a",), ("B-X",))], [Example(("b", "c"), ("B-Y", "B-X"))], None)
    assert task.notes == ["--dev has labels that TRAIN lacks: 'B-Y'"]


def test_labels_are_the_datas_or_the_heads(task: Tagging) -> None:
    examples = [Example(("a", "b"), ("B-Y", "O")), Example(("c",), ("B-X",))]
    fitted(task, examples)
    assert task.config_changes()["id2label"] == {0: "O", 1: "B-X", 2: "I-X", 3: "B-Y", 4: "I-Y"}
    task.fit(examples, [], Head(("B-X", "B-Y", "O", "I-Z"), None))
    assert task.labels.names == ("B-X", "B-Y", "O", "I-Z")
    assert task.notes == []
    numbered = Tagging(task.tokenizer, 64)
    numbered.fit([Example(("a", "b"), ("1", "0"))], [], Head(("NOUN", "VERB"), None))
    assert numbered.notes == ["labels 0, 1 are taken for places: 'NOUN', 'VERB'"]
    with pytest.raises(HeadMismatchError, match="the data has the labels 'B-X', 'B-Y', 'O', the head 'O', 'B-X'"):
        task.fit(examples, [], Head(("O", "B-X"), None))
    with pytest.raises(InputError, match="no word has a tag but 'O'"):
        Tagging(task.tokenizer, 64).fit([Example(("a",), ("O",))], [], None)


def test_a_text_with_entities_needs_offsets(tmp_path: Path) -> None:
    pytest.importorskip("sacremoses")
    task = Tagging(family_folders.tokenizer("XLM"), 64)
    with pytest.raises(InputError, match="line 1 has a text with entities, which needs a tokenizer"):
        read(task, tmp_path / "a.jsonl", '{"text": "ab", "entities": []}')

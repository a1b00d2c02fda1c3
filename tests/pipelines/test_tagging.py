"""Token classification, against the reference on ids put together by hand and characters found by a slow search."""

from functools import cache
from itertools import chain

import pytest
import torch
from helpers.characters import spans
from helpers.documents import TEXTS, document

CLS, SEP, UNK, MOST = 0, 2, 3, 512
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
STRATEGIES = ("none", "simple", "first", "average", "max")


@pytest.fixture(scope="module")
def texts(tokenizer):
    """Texts in 23 languages, every token of which is literally in them."""
    assert all(places_of(tokenizer, text) for text in TEXTS)
    return TEXTS


@cache
def places_of(tokenizer, text):
    return spans(text, tokenizer.tokenize(text))


def tokens_of(plain, tokenizer, text, first=0, most=MOST - 2):
    """Score vectors, characters and names of the tokens of a window."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    places = places_of(tokenizer, text)
    # What has no id keeps its characters for a name, and is a word of its own.
    names = [
        text[start:end] if token == UNK else name
        for token, name, (start, end) in zip(ids, tokenizer.convert_ids_to_tokens(ids), places, strict=True)
    ]
    window = slice(first, first + most)
    with torch.inference_mode():
        logits = plain(torch.tensor([[CLS, *ids[window], SEP]])).logits[0, 1:-1]
    known = [token != UNK for token in ids]
    return list(zip(logits.softmax(-1), places[window], names[window], known[window], strict=True))


def entity(scores, span, names):
    return {"label": LABELS[int(scores.argmax())], "score": float(scores.max()), "span": span, "names": names}


def words(tokens, text, strategy):
    """One entity for each token, or for each run of tokens without a space between."""
    if strategy in ("none", "simple"):
        return [entity(scores, span, [name]) for scores, span, name, _ in tokens]
    runs = []
    for token in tokens:
        begin = token[1][0]
        glued = begin > 0 and " " not in text[begin - 1 : begin + 1]
        if runs and glued and token[3]:
            runs[-1].append(token)
        else:
            runs.append([token])
    found = []
    for run in runs:
        scores = torch.stack([token[0] for token in run])
        chosen = {
            "first": scores[0],
            "average": scores.mean(0),
            "max": scores[int(scores.amax(-1).argmax())],
        }[strategy]
        found.append(entity(chosen, (run[0][1][0], run[-1][1][1]), [token[2] for token in run]))
    return found


def groups(found):
    """Neighbours of one kind together; B- begins another."""
    runs = []
    for word in found:
        kind = word["label"][2:] or "O"
        if runs and runs[-1][0] == kind and not word["label"].startswith("B-"):
            runs[-1][1].append(word)
        else:
            runs.append((kind, [word]))
    return [
        {
            "label": kind,
            "score": sum(word["score"] for word in run) / len(run),
            "span": (run[0]["span"][0], run[-1]["span"][1]),
            "names": [name for word in run for name in word["names"]],
        }
        for kind, run in runs
    ]


def entities(tokens, text, strategy, ignored=("O",)):
    found = words(tokens, text, strategy)
    found = found if strategy == "none" else groups(found)
    return [one for one in found if one["label"] not in ignored]


def assert_entities(found, expected, tokenizer, text, key="entity_group"):
    assert [one[key] for one in found] == [one["label"] for one in expected]
    assert [(one["start"], one["end"]) for one in found] == [one["span"] for one in expected]
    assert [float(one["score"]) for one in found] == pytest.approx([one["score"] for one in expected], rel=1e-9)
    if key == "entity":
        assert [one["word"] for one in found] == [one["names"][0] for one in expected]
        return
    for one, other in zip(found, expected, strict=True):
        assert one["word"].replace(" ", "") == "".join(other["names"]).replace("▁", "").replace(" ", "")


def check(make_pipeline, tokenizer, texts, strategy, batch_size):
    tag, plain = make_pipeline(
        "token-classification", "ErnieMForTokenClassification", LABELS, aggregation_strategy=strategy
    )
    for text, found in zip(texts, tag(texts, batch_size=batch_size), strict=True):
        expected = entities(tokens_of(plain, tokenizer, text), text, strategy)
        assert_entities(found, expected, tokenizer, text, "entity" if strategy == "none" else "entity_group")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_aggregation(make_pipeline, tokenizer, texts, strategy):
    check(make_pipeline, tokenizer, texts[:24:2], strategy, 5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_aggregation_in_every_script(make_pipeline, tokenizer, texts, strategy):
    check(make_pipeline, tokenizer, texts, strategy, 1)
    check(make_pipeline, tokenizer, texts, strategy, 8)


def without_overlaps(found):
    """Of entities that overlap, in order of their starts, the longer one, then the one of the higher score."""
    kept = []
    for one in sorted(found, key=lambda one: one["span"][0]):
        start, end = one["span"]
        if not kept or not kept[-1]["span"][0] <= start < kept[-1]["span"][1]:
            kept.append(one)
            continue
        length, before = end - start, kept[-1]["span"][1] - kept[-1]["span"][0]
        if length > before or (length == before and one["score"] > kept[-1]["score"]):
            kept[-1] = one
    return kept


@pytest.mark.parametrize(
    ("strategy", "batch_size"), [("simple", 4), pytest.param("average", 1, marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_a_document_of_4000_tokens_in_windows(make_pipeline, tokenizer, texts, strategy, batch_size):
    tag, plain = make_pipeline(
        "token-classification", "ErnieMForTokenClassification", LABELS, aggregation_strategy=strategy
    )
    text, stride = document(tokenizer, 4000, texts), 100
    cut = entities(tokens_of(plain, tokenizer, text), text, strategy)
    assert_entities(tag(text), cut, tokenizer, text)  # without a stride the rest is left out

    total = len(places_of(tokenizer, text))
    expected = []
    for first in range(0, total - stride, MOST - 2 - stride):
        expected += entities(tokens_of(plain, tokenizer, text, first), text, strategy)
    # A lone "▁" can be an entity of no characters, and transformers repeats it where it comes first.
    expected = [one for one in without_overlaps(expected) if one["span"][0] < one["span"][1]]
    found, _ = tag([text, texts[0]], stride=stride, batch_size=batch_size)
    found = [one for one in found if one["start"] < one["end"]]
    assert_entities(found, expected, tokenizer, text)
    assert found[-1]["end"] > places_of(tokenizer, text)[-300][0]


def test_words_given_as_a_list(make_pipeline, tokenizer):
    tag, plain = make_pipeline(
        "token-classification", "ErnieMForTokenClassification", LABELS, aggregation_strategy="none", ignore_labels=[]
    )
    split = ["Mona", "wohnt", "in", "Saint-Denis", ",", "Frankreich", "."]
    text = " ".join(split)
    pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in split]
    with torch.inference_mode():
        logits = plain(torch.tensor([[CLS, *chain.from_iterable(pieces), SEP]])).logits[0, 1:-1]
    (found,) = tag(split, is_split_into_words=True)
    assert [LABELS[int(row.argmax())] for row in logits] == [one["entity"] for one in found]
    begin, place = 0, 0
    for word, ids in zip(split, pieces, strict=True):
        inner = spans(word, tokenizer.convert_ids_to_tokens(ids))
        assert inner
        for start, end in inner:
            assert (found[place]["start"], found[place]["end"]) == (begin + start, begin + end)
            place += 1
        begin += len(word) + 1
    assert place == len(found)
    assert text[found[-1]["start"] : found[-1]["end"]] == "."


def test_options_that_cannot_work_say_so(make_pipeline, tokenizer):
    tag, _ = make_pipeline("token-classification", "ErnieMForTokenClassification", LABELS)
    with pytest.raises(ValueError, match="stride"):
        tag("Mona", stride=512, aggregation_strategy="simple")
    with pytest.raises(ValueError, match="stride"):
        tag("Mona", stride=100, aggregation_strategy="none")
    with pytest.raises(ValueError, match="stride"):
        tag("Mona " * 600, stride=511, aggregation_strategy="simple")  # [CLS] and [SEP] leave 510

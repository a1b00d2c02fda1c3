"""The feature preparation of the SQuAD and token-classification recipes, on XQuAD and on tagged text."""

import numpy as np
import pytest
import torch
from helpers.recipes import EXAMPLES, of_script, ours
from helpers.tagged import LABELS, SENTENCES
from helpers.xquad import ROWS
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    default_data_collator,
)

CLS, SEP, MASK = 0, 2, 16001
WINDOW = {"max_length": 72, "stride": 24}
SOURCES = [pytest.param(ours, id="ours"), *([pytest.param(of_script, id="script")] if EXAMPLES else [])]


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def mapped(rows, recipe):
    """The columns that a recipe makes of rows, 20 at a time."""
    found = {}
    for first in range(0, len(rows), 20):
        for name, values in recipe(columns(rows[first : first + 20])).items():
            found.setdefault(name, []).extend(values)
    assert len({len(values) for values in found.values()}) == 1
    return found


def unstacked(features):
    return [dict(zip(features, values, strict=True)) for values in zip(*features.values(), strict=True)]


@pytest.mark.parametrize("source", SOURCES)
def test_training_features_of_squad(tokenizer, source):
    rows = [row | {"question": f"  {row['question']}"} for row in ROWS]
    features = mapped(rows, source("prepare_train_features", tokenizer, **WINDOW))
    assert set(features) == {"input_ids", "attention_mask", "start_positions", "end_positions"}
    found = []
    for feature in unstacked(features):
        ids, start, end = feature["input_ids"], feature["start_positions"], feature["end_positions"]
        assert len(ids) <= WINDOW["max_length"]
        assert ids[0] == CLS
        assert ids.count(SEP) == 3
        assert 0 <= start <= end < len(ids)
        if start:
            found.append(tokenizer.decode(ids[start : end + 1]).replace(" ", ""))
    # Each answer is in a window at least: the longest has fewer tokens than two windows share.
    for row in ROWS:
        answer = tokenizer(row["answers"]["text"][0], add_special_tokens=False)["input_ids"]
        text = tokenizer.decode(answer).replace(" ", "")
        assert len(answer) > WINDOW["stride"] or any(text in candidate for candidate in found), text


@pytest.mark.parametrize("source", SOURCES)
def test_gold_answers_are_recovered_by_offsets(tokenizer, source):
    train = mapped(ROWS, source("prepare_train_features", tokenizer, **WINDOW))
    features = mapped(ROWS, source("prepare_validation_features", tokenizer, **WINDOW))
    assert set(features) == {"input_ids", "attention_mask", "example_id", "offset_mapping"}
    assert features["input_ids"] == train["input_ids"]
    # The questions' ids are those of the paragraphs, the same in all languages; rows come in order.
    by_place, place = [], 0
    for identity in features["example_id"]:
        while ROWS[place]["id"] != identity:
            place += 1
        by_place.append(ROWS[place])
    exact: dict[str, list[bool]] = {}
    for row, offsets, start, end in zip(
        by_place, features["offset_mapping"], train["start_positions"], train["end_positions"], strict=True
    ):
        context = row["context"]
        gold, begin = row["answers"]["text"][0], row["answers"]["answer_start"][0]
        inside = [tuple(span) for span in offsets if span is not None]
        holds = inside[0][0] <= begin and begin + len(gold) <= inside[-1][1]
        assert (start > 0) == holds
        if not holds:
            continue
        recovered = slice(offsets[start][0], offsets[end][1])
        assert recovered.start <= begin < begin + len(gold) <= recovered.stop
        if any(span[0] == begin < span[1] for span in inside):
            assert recovered.start == begin
        if any(span[0] < span[1] == begin + len(gold) for span in inside):
            assert recovered.stop == begin + len(gold)
        exact.setdefault(row["lang"], []).append(context[recovered] == gold)
    assert len(exact) == 7
    # The rest begin or end within a token of the stand-in's vocabulary.
    for language, results in exact.items():
        assert np.mean(results) > 0.7, language


@pytest.mark.skipif(EXAMPLES is None, reason="TRANSFORMERS_EXAMPLES is not set")
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("name", ["prepare_train_features", "prepare_validation_features"])
def test_the_scripts_give_the_same_features(tokenizer, name, pad):
    features = [mapped(ROWS, source(name, tokenizer, pad=pad, **WINDOW)) for source in (ours, of_script)]
    assert features[0] == features[1]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ["prepare_train_features", "prepare_validation_features"])
def test_features_in_a_dataset(tokenizer, source, name):
    datasets = pytest.importorskip("datasets")
    recipe, dataset = source(name, tokenizer, **WINDOW), datasets.Dataset.from_list(ROWS)
    found = dataset.map(recipe, batched=True, batch_size=20, remove_columns=dataset.column_names).to_dict()
    expected = mapped(ROWS, recipe)
    if "offset_mapping" in expected:  # Arrow has lists for tuples
        expected["offset_mapping"] = [
            [None if span is None else list(span) for span in row] for row in expected["offset_mapping"]
        ]
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_features_train_a_model(tokenizer, make_pair, source):
    padded = mapped(ROWS[:4], source("prepare_train_features", tokenizer, pad=True, **WINDOW))
    assert {len(ids) for ids in padded["input_ids"]} == {WINDOW["max_length"]}
    ragged = mapped(ROWS[:4], source("prepare_train_features", tokenizer, **WINDOW))
    changes = {"vocab_size": len(tokenizer), "max_position_embeddings": 130}
    _, model = make_pair("ErnieMForQuestionAnswering", **changes)
    losses = [
        model(**default_data_collator(unstacked(padded))).loss,
        model(**DataCollatorWithPadding(tokenizer)(unstacked(ragged))).loss,
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-9)
    losses[0].backward()
    assert model.qa_outputs.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("label_all_tokens", [False, True])
@pytest.mark.parametrize("max_length", [128, 9])
def test_labels_lie_on_their_words(tokenizer, source, label_all_tokens, max_length):
    rows = [{"tokens": words, "ner_tags": [LABELS.index(tag) for tag in tags]} for words, tags in SENTENCES]
    options = {"max_length": max_length, "labels": LABELS, "label_all_tokens": label_all_tokens}
    features = mapped(rows, source("tokenize_and_align_labels", tokenizer, **options))
    for row, feature in zip(rows, unstacked(features), strict=True):
        ids, labels = [CLS], [-100]
        for word, tag in zip(row["tokens"], row["ner_tags"], strict=True):
            own = tokenizer(word, add_special_tokens=False)["input_ids"]
            inner = LABELS.index(LABELS[tag].replace("B-", "I-")) if label_all_tokens else -100
            ids += own
            labels += [tag, *[inner] * (len(own) - 1)][: len(own)]
        assert feature["input_ids"] == [*ids[: max_length - 1], SEP]
        assert feature["labels"] == [*labels[: max_length - 1], -100]
        assert feature["attention_mask"] == [1] * len(feature["input_ids"])
    batch = DataCollatorForTokenClassification(tokenizer)(unstacked(features))
    assert batch["labels"].shape == batch["input_ids"].shape


@pytest.mark.parametrize("tensors", ["pt", "np"])
def test_whole_words_are_masked(tokenizer, tensors):
    texts = [" ".join(words) for words, _ in SENTENCES[:8]]
    encoded = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True)
    examples = [{name: encoded[name][row] for name in encoded} for row in range(len(texts))]
    collate = DataCollatorForLanguageModeling(
        tokenizer, whole_word_mask=True, mask_replace_prob=1.0, random_replace_prob=0.0, mlm_probability=0.4,
        return_tensors=tensors,
    )  # fmt: skip
    masked = whole = 0
    for _ in range(3):
        batch = collate([dict(example) for example in examples])
        labels, ids = torch.as_tensor(batch["labels"]), torch.as_tensor(batch["input_ids"])
        for row, text in enumerate(texts):
            groups: dict[int, list[bool]] = {}
            for place, (start, end) in enumerate(encoded["offset_mapping"][row]):
                chosen = bool(labels[row, place] != -100)
                if encoded["special_tokens_mask"][row][place]:
                    assert not chosen
                    continue
                assert (ids[row, place] == MASK) == chosen
                if chosen:
                    assert labels[row, place] == encoded["input_ids"][row][place]
                if start < end:
                    groups.setdefault(text.count(" ", 0, start), []).append(chosen)
            for group in groups.values():
                assert all(group) or not any(group)
                whole += len(group) > 1 and all(group)
                masked += all(group)
    assert whole > 0
    assert masked > whole

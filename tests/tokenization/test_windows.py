"""Windows, truncation, padding and encodings, against the library `tokenizers` on the same tokens."""

import pytest
from helpers.golden_tokenizer import build
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["the", "a", "in", "of", "is", "to", "dog", "and", "was", "for"]  # one token each
TEXT = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)


@pytest.fixture(scope="module")
def tokenizer():
    return build()


@pytest.fixture(scope="module")
def oracle(tokenizer):
    """A Rust tokenizer of the same words, ids and special tokens."""
    names = ["[CLS]", "[SEP]", "[PAD]", "[UNK]"]
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
    ids |= {word: tokenizer.convert_tokens_to_ids("▁" + word) for word in WORDS}
    rust = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP]:1 [SEP]:1 $B:1 [SEP]:1",
        special_tokens=[(name, ids[name]) for name in names[:2]],
    )
    return rust


def rows_of(encodings):
    names = ("ids", "type_ids", "attention_mask", "special_tokens_mask", "offsets", "word_ids", "sequence_ids")
    return [{name: getattr(encoding, name) for name in names} for encoding in encodings]


def assert_same(encoding, expected, text, n_words):
    assert len(encoding) == len(expected)
    for i in range(len(encoding)):
        for method in ("token_to_sequence", "token_to_word", "token_to_chars"):
            assert getattr(encoding, method)(i) == getattr(expected, method)(i), (method, i)
    for sequence in range(encoding.n_sequences):
        for char in range(len(text)):
            for method in ("char_to_token", "char_to_word"):
                assert getattr(encoding, method)(char, sequence) == getattr(expected, method)(char, sequence)
        for word in range(n_words):
            for method in ("word_to_tokens", "word_to_chars"):
                assert getattr(encoding, method)(word, sequence) == getattr(expected, method)(word, sequence)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_windows_are_those_of_the_rust_library(tokenizer, oracle, data, samples, pairs, left):
    strategy = data.draw(
        st.sampled_from(["longest_first", "only_first", "only_second"] if pairs else ["longest_first"])
    )
    texts, seconds = ([sample[i].split() for sample in samples] for i in (0, 1))
    fixed = seconds if strategy == "only_first" else texts if strategy == "only_second" else []
    needed = max(map(len, fixed), default=0) + (4 if pairs else 2)
    max_length = data.draw(st.integers(needed + 2, needed + 9))
    stride = data.draw(st.integers(0, (max_length - needed) // 2 - 1 if pairs else max_length - needed - 1))
    padding = data.draw(st.sampled_from([False, True, "max_length"]))
    multiple = data.draw(st.sampled_from([None, 4]))
    side = "left" if left else "right"
    if padding and multiple:
        max_length += -max_length % multiple
    if strategy == "longest_first" and pairs and (max_length - needed) % 2:
        max_length += 1 if not (padding and multiple) else multiple  # an odd token goes to another text than there
    tokenizer.truncation_side = side
    oracle.enable_truncation(max_length, stride=stride, strategy=strategy, direction=side)
    if padding:
        length = max_length if padding == "max_length" else None
        oracle.enable_padding(direction=side, pad_id=1, pad_token="[PAD]", length=length, pad_to_multiple_of=multiple)
    else:
        oracle.no_padding()
    encoded = tokenizer(
        [text for text, _ in samples], [pair for _, pair in samples] if pairs else None, truncation=strategy,
        max_length=max_length, stride=stride, return_overflowing_tokens=True, padding=padding, padding_side=side,
        pad_to_multiple_of=multiple, return_offsets_mapping=True, return_special_tokens_mask=True,
        return_token_type_ids=True, return_length=True,
    )  # fmt: skip
    mains = oracle.encode_batch([sample if pairs else sample[0] for sample in samples])
    expected = [row for main in mains for row in (main, *main.overflowing)]
    assert rows_of(encoded.encodings) == rows_of(expected)
    assert encoded["overflow_to_sample_mapping"] == [
        i for i, main in enumerate(mains) for _ in (main, *main.overflowing)
    ]
    assert encoded["input_ids"] == [row.ids for row in expected]
    assert encoded["offset_mapping"] == [row.offsets for row in expected]
    assert encoded["attention_mask"] == [row.attention_mask for row in expected]
    assert encoded["special_tokens_mask"] == [row.special_tokens_mask for row in expected]
    assert encoded["token_type_ids"] == [row.type_ids for row in expected]
    assert encoded["length"] == [sum(row.attention_mask) for row in expected]
    assert_same(encoded.encodings[-1], expected[-1], max(samples[-1], key=len), 15)
    first = [
        row for row, sample in zip(encoded.encodings, encoded["overflow_to_sample_mapping"], strict=True) if not sample
    ]
    assert first[0].overflowing == first[1:]
    assert not any(row.overflowing for row in first[1:])

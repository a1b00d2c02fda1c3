"""Windows, truncation, padding and encodings, against the library `tokenizers` on the same tokens."""

import pickle

import numpy as np
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


@settings(max_examples=150)
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


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("side", ["right", "left"])
@settings(max_examples=60)
@given(first=TEXT, second=TEXT, room=st.integers(0, 12))
def test_longest_first_takes_tokens_one_by_one(tokenizer, side, first, second, room):
    """As in transformers 4.40.2: of the longer text, of texts of equal length from the second."""
    a, b = ids_of(tokenizer, first), ids_of(tokenizer, second)
    while len(a) + len(b) > room:
        longer = a if len(a) > len(b) else b
        longer.pop(-1 if side == "right" else 0)
    tokenizer.truncation_side = side
    ids = tokenizer(first, second, truncation=True, max_length=room + 4)["input_ids"]
    assert ids == tokenizer.build_inputs_with_special_tokens(a, b)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["the dog"], {"max_length": 4, "stride": 4}, "stride=4: expected less than max_length=4"),
        (["the dog in"], {"max_length": 4, "stride": 2}, "stride=2: expected less than the 2 tokens .*max_length=4"),
        (["the dog in"], {"max_length": 4, "stride": -1}, "stride=-1: expected at least 0"),
        (["the dog"], {"max_length": 1}, "max_length=1: expected at least 2, the special tokens"),
        (["the"], {"max_length": 0}, "max_length=0: expected at least 2"),
        (["the dog in of", "is to"], {"max_length": 8, "truncation": "only_second"},
         "max_length=8 with truncation='only_second': expected more tokens than the first text's 4 and 4 special ones"),
        (["the", "is to and was"], {"max_length": 7, "truncation": "only_first"},
         "max_length=7 with truncation='only_first': expected more tokens than the second text's 4"),
        (["the dog in of"], {"max_length": 5, "truncation": "only_second"},
         "truncation='only_second': expected a pair of texts, got one of 4 tokens"),
    ],
)  # fmt: skip
def test_no_room(tokenizer, texts, options, message):
    with pytest.raises(ValueError, match=message):
        tokenizer(*texts, **{"truncation": True, "return_overflowing_tokens": True} | options)


def test_tensors_and_single_texts(tokenizer):
    torch = pytest.importorskip("torch")
    text = " ".join(WORDS * 3)
    options = {"max_length": 12, "stride": 3, "truncation": True, "padding": True, "return_overflowing_tokens": True}
    lists = tokenizer(text, return_offsets_mapping=True, **options)
    assert lists["overflow_to_sample_mapping"] == [0, 0, 0, 0]
    assert {len(row) for row in lists["input_ids"]} == {12}
    for kind, array in (("np", np.array), ("pt", torch.tensor)):
        tensors = tokenizer(text, return_offsets_mapping=True, return_tensors=kind, **options)
        assert list(tensors) == list(lists)
        for name, values in lists.items():
            assert (tensors[name] == array(values)).all()
            assert tensors[name].shape == array(values).shape
        assert tensors.word_ids(3) == lists.word_ids(3)
    ragged = {"return_overflowing_tokens": False, "padding": False}
    with pytest.raises(ValueError, match="Unable to create tensor"):
        tokenizer([text, "the"], return_tensors="pt", **options | ragged)
    single = tokenizer("the dog")
    assert single["input_ids"] == tokenizer(["the dog"])["input_ids"][0]
    assert tokenizer("the dog", return_tensors="np")["input_ids"].shape == (1, 4)
    assert tokenizer([]) == {"input_ids": [], "attention_mask": []}
    assert tokenizer(["the", ("the", "dog")], padding=True).encodings[1].n_sequences == 2


def test_empty_texts(tokenizer):
    encoded = tokenizer(["", " \t", "\u200b"], return_offsets_mapping=True)
    assert encoded["input_ids"] == [[0, 2]] * 3
    assert encoded["offset_mapping"] == [[(0, 0), (0, 0)]] * 3
    assert tokenizer([], is_split_into_words=True)["input_ids"] == [0, 2]
    assert tokenizer(["", "\u200b"], is_split_into_words=True).word_ids() == [None, None]
    assert tokenizer("", "", add_special_tokens=False)["input_ids"] == []


def test_words_between_white_space(tokenizer):
    encoded = tokenizer("Hello, world\t中 文[MASK]s x9", "a  b")
    words = {}
    for token, word, sequence in zip(encoded.tokens(), encoded.word_ids(), encoded.sequence_ids(), strict=True):
        if word is not None:
            words[sequence, word] = words.get((sequence, word), "") + token.replace("▁", "")
    assert list(words.values()) == ["Hello,", "world", "中", "文", "[MASK]", "s", "x9", "a", "b"]
    assert list(words) == [*((0, i) for i in range(7)), (1, 0), (1, 1)]
    assert encoded.word_to_chars(1) == (7, 12)
    assert encoded.word_to_chars(1, sequence_index=1) == (3, 4)
    assert encoded.char_to_token(13) == encoded.tokens().index("中")
    assert encoded.char_to_token(12) is None


def test_encodings_are_copied_without_the_tokenizer(tokenizer):
    encoded = tokenizer([("the dog", "of"), ("in was", "is")], padding="max_length", max_length=12)
    copied = pickle.loads(pickle.dumps(encoded))
    assert rows_of(copied.encodings) == rows_of(encoded.encodings)
    assert copied.tokens(1) == encoded.tokens(1)
    assert copied.char_to_token(1, 3) == encoded.char_to_token(1, 3) is not None
    assert len(pickle.dumps(encoded)) < 5000


def test_encodings_do_not_change_with_the_tokenizer():
    changing = build()
    encoded = changing("the dog of")
    changing.add_tokens(["dog"])
    changing.do_lower_case = True
    assert encoded.tokens() == ["[CLS]", "▁the", "▁dog", "▁of", "[SEP]"]
    assert changing.tokenize("the dog of") == ["▁the", "dog", "▁of"]


def test_padding_later_keeps_offsets(tokenizer):
    rows = [tokenizer(text, return_offsets_mapping=True) for text in ("the dog", "of")]
    for side in ("left", "right"):
        padded = tokenizer.pad(rows, padding_side=side, return_tensors="np")
        assert padded["offset_mapping"].shape == (2, 4, 2)
        assert padded["offset_mapping"][1][padded["attention_mask"][1] == 1].tolist() == [[0, 0], [0, 2], [0, 0]]


@pytest.mark.parametrize("max_length", [4, 5])
def test_windows_of_pairs_need_a_token_of_each_text(tokenizer, max_length):
    with pytest.raises(ValueError, match=f"max_length={max_length}: expected more than the special tokens"):
        tokenizer("one two", "three four", truncation=True, max_length=max_length, return_overflowing_tokens=True)

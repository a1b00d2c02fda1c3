"""Spans of tokens in the caller's string: by hand, on real text in many scripts, on arbitrary Unicode."""

import json
import re
import unicodedata

import numpy as np
import pytest
from helpers.golden_tokenizer import build, read_json
from helpers.paths import GOLDEN_TOKENIZER, ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AddedToken

PROPERTY = settings(max_examples=150)
DEMO = ROOT / "erniem_fast" / "demo_data" / "texts.jsonl"
REAL_TEXTS = [row["text"] for row in read_json(GOLDEN_TOKENIZER / "golden.json")]
REAL_TEXTS += [json.loads(line)["text"] for line in DEMO.read_text(encoding="utf-8").splitlines()]
ODD_CHARS = (
    "aeéİIΣςﬁﬃﷺ①½²㍿Ａ９ｶﾞㄱㅏ가\u1100\u1161क्षि\u0301\u0323\u0327\u200b\u200d\u200e\u0001\u0000\x85\xad\xa0\ufeff\ufffd"
    "\t\n \u3000\u2028▁´¨…中文鿿，。.?!19😀👩🏽\ufe0f゛שלוםالسلام"
)
ODD_TEXTS = st.text(max_size=30) | st.text(ODD_CHARS, max_size=40)


@pytest.fixture(scope="module")
def tokenizer():
    return build()


@pytest.fixture(scope="module")
def lower():
    return build(do_lower_case=True)


def encode(tokenizer, text, **options):
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, **options)
    return list(zip(encoded.tokens(), encoded["offset_mapping"], strict=True))


def assert_spans_hold(tokenizer, text):
    """Each span, normalised, is its token's text; tokens that come out of one character share its span."""

    def normalised(part):
        return tokenizer.sp_model.normalize("".join(map(str.lower, part)) if tokenizer.do_lower_case else part)

    covered, before, shared = set(), (0, 0), []
    for token, (start, end) in encode(tokenizer, text):
        assert before[0] <= start <= end <= len(text)
        assert before[1] <= end
        visible = token.replace("▁", "")
        if token in tokenizer.get_added_vocab():
            assert text[start:end] == token
            visible = normalised(token).replace("▁", "")
        if start == end:
            assert visible == ""
            continue
        if start < before[1] and shared:
            shared[-1] = (shared[-1][0], end, shared[-1][2] + visible)
        else:
            shared.append((start, end, visible))
        before = start, end
        covered.update(range(start, end))
    for start, end, visible in shared:
        assert normalised(text[start:end]).replace("▁", "") == visible
        if end - start > 1:  # nothing invisible at the end
            assert normalised(text[start : end - 1]) != normalised(text[start:end])
    assert all(normalised(text[i]).replace("▁", "") == "" for i in set(range(len(text))) - covered)


def test_real_text(tokenizer, lower):
    letters = {char for text in REAL_TEXTS for char in text if char.isalpha()}
    scripts = {re.split(r"[ -]", unicodedata.name(char))[0] for char in letters}
    assert len(scripts) >= 12, scripts
    for text in REAL_TEXTS:
        for one in (tokenizer, lower):
            assert_spans_hold(one, text)


@PROPERTY
@given(ODD_TEXTS.filter(lambda text: "[" not in text))
@example("")
@example(" \t\u200b")
@example("a\x01\x01 b\x01")
@example("صﷺ،")
def test_arbitrary_text(tokenizer, lower, text):
    for one in (tokenizer, lower):
        assert_spans_hold(one, text)


@PROPERTY
@given(st.lists(ODD_TEXTS, max_size=6))
@example(["…", " …", "b\x01", "", "İ", "ﬁ"])
def test_a_batch_is_its_texts_one_by_one(tokenizer, lower, texts):
    for one in (tokenizer, lower):
        batch = one(texts, return_offsets_mapping=True)
        for i, text in enumerate(texts):
            alone = one(text, return_offsets_mapping=True)
            assert {name: batch[name][i] for name in batch} == alone
            assert batch.tokens(i) == alone.tokens()
            assert batch.word_ids(i) == alone.word_ids()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello  my\tdog", [("▁Hello", 0, 5), ("▁my", 7, 9), ("▁dog", 10, 13)]),
        (" 中 文9", [("中", 1, 2), ("▁", 3, 3), ("文", 3, 4), ("9", 4, 5)]),
        ("ﬃ", [("▁f", 0, 1), ("fi", 0, 1)]),
        ("Ｈｅｌｌｏ！", [("▁Hello", 0, 5), ("!", 5, 6)]),
        ("cafe\u0301s", [("▁ca", 0, 2), ("f", 2, 3), ("és", 3, 6)]),
        ("a…b", [("▁a", 0, 1), (".", 1, 2), (".", 1, 2), (".", 1, 2), ("b", 2, 3)]),
        ("dog\u200b\u0001", [("▁dog", 0, 3)]),
        ("😀👨 ok", [("😀👨", 0, 2), ("▁", 3, 3), ("ok", 3, 5)]),
        ("שלום עולם", [("▁של", 0, 2), ("ום", 2, 4), ("▁", 5, 5), ("ע", 5, 6), ("ול", 6, 8), ("ם", 8, 9)]),
        ("fill [MASK].", [("▁fi", 0, 2), ("ll", 2, 4), ("[MASK]", 5, 11), (".", 11, 12)]),
    ],
)
def test_by_hand(tokenizer, text, expected):
    assert [(token, *span) for token, span in encode(tokenizer, text)] == expected


def test_lowercasing_that_changes_the_length(lower):
    assert_spans_hold(lower, "İİ x İSTANBUL")
    spans = [(token, text) for token, text in encode(lower, "dog İdog")]
    assert spans[0] == ("▁dog", (0, 3))
    assert spans[-2:] == [("do", (5, 7)), ("g", (7, 8))]
    assert spans[1:-2] == [("▁i", (4, 5)), ("\u0307", (4, 5))]
    assert encode(lower, "İ[MASK]DOG")[-2:] == [("[MASK]", (1, 7)), ("▁dog", (7, 10))]


def test_sampled_pieces_have_spans():
    sampling = build(sp_model_kwargs={"enable_sampling": True, "nbest_size": -1, "alpha": 0.1})
    rows = {tuple(encode(sampling, "Encyclopædia of ﬁsh 中文 鿿")) for _ in range(30)}
    assert len(rows) > 1
    for row in rows:
        assert [span for _, span in row][-1] == (23, 24)
        joined = "".join(token for token, _ in row if token != "▁")
        assert joined.replace("▁", "") == "Encyclopædiaoffish中文鿿"


def test_pieces_that_do_not_make_up_the_text():
    odd = build(sp_model_kwargs={"add_eos": True})
    assert odd("Hello").tokens() == ["[CLS]", "▁Hello", "</s>", "[SEP]"]
    for name in ("add_eos", "add_bos", "reverse", "emit_unk_piece"):
        odd = build(sp_model_kwargs={name: True})
        with pytest.raises(ValueError, match=f"sp_model_kwargs={{'{name}': True}}: expected .* make up the text"):
            odd("Hello dog 😀", return_offsets_mapping=True)


def test_added_tokens():
    added = build(additional_special_tokens=["<e>"])
    added.add_tokens(
        [AddedToken("<l>", lstrip=True), AddedToken("<r>", rstrip=True), AddedToken("<w>", single_word=True)]
    )
    assert [(t, *s) for t, s in encode(added, "dog<e> dog <l>dog<r>  dog <w> a<w>")] == [
        ("▁dog", 0, 3), ("<e>", 3, 6), ("▁dog", 7, 10), ("<l>", 11, 14), ("▁dog", 14, 17), ("<r>", 17, 20),
        ("▁dog", 22, 25), ("<w>", 26, 29), ("▁a", 30, 31), ("<", 31, 32), ("w", 32, 33), (">", 33, 34),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def overlapping():
    """A tokenizer with added tokens that overlap, and the base class's way to split a text at them."""
    names = ["<a>", "<ab>", "<", "b>a", "ab<a>"]
    kinds = [{}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"lstrip": True, "rstrip": True}]
    added = build()
    added.add_tokens([AddedToken(name, **kind) for name, kind in zip(names, kinds, strict=True)])
    added._tokenize = lambda part: added.sp_model.encode(part, out_type=str)
    return added, super(type(added), added).tokenize


@PROPERTY
@example("ab<<a>", False)  # from which its trie takes "ab<a>", with a character in between
@given(st.lists(st.text("ab<> \t", max_size=9), max_size=3).map("".join), st.booleans())
def test_added_tokens_are_found_as_by_the_base_class(overlapping, text, split):
    added, by_base_class = overlapping
    plain = by_base_class(text, split_special_tokens=split)
    assert [t for t in added.tokenize(text, split_special_tokens=split) if t != "▁"] == [t for t in plain if t != "▁"]


def test_words_have_spans_of_their_own(tokenizer):
    words = ["Hello,", "\u200b", "", "ﬁsh  dog", "[MASK]", "中文"]
    encoded = tokenizer(words, is_split_into_words=True, return_offsets_mapping=True)
    spans = zip(encoded.word_ids(), encoded["offset_mapping"], encoded.tokens(), strict=True)
    assert [(word, words[word][a:b], token) for word, (a, b), token in list(spans)[1:-1]] == [
        (0, "Hello", "▁Hello"), (0, ",", ","), (3, "ﬁsh", "▁fish"), (3, "dog", "▁dog"), (4, "[MASK]", "[MASK]"),
        (5, "中", "中"), (5, "文", "文"),
    ]  # fmt: skip
    assert encoded["offset_mapping"][0] == encoded["offset_mapping"][-1] == (0, 0)
    assert encoded.word_to_tokens(1) is encoded.word_to_tokens(2) is None
    assert encoded.word_to_tokens(3) == (3, 5)


@pytest.mark.parametrize("tensors", [None, "np", "pt"])
def test_batches_and_pairs(tokenizer, tensors):
    if tensors == "pt":
        pytest.importorskip("torch")
    pairs = [("Hello, dog", "中文 ﬁsh"), ("ok", ""), ("", "Very well, thank you.")]
    batch = tokenizer(pairs, return_offsets_mapping=True, padding=True, return_tensors=tensors)
    rows = np.asarray(batch["offset_mapping"])
    for i, (text, pair) in enumerate(pairs):
        first, second = ([span for _, span in encode(tokenizer, part)] if part else [] for part in (text, pair))
        n = len(first) + len(second) + 4
        expected = [(0, 0), *first, (0, 0), (0, 0), *second, (0, 0)]
        assert [tuple(span) for span in rows[i, :n].tolist()] == expected
        assert not rows[i, n:].any()


def test_token_ids_have_no_spans(tokenizer):
    assert tokenizer([5, 6])["input_ids"] == [0, 5, 6, 2]
    with pytest.raises(ValueError, match="offsets, words and tokens: expected texts, got token ids"):
        tokenizer(["a", [5, 6]], return_offsets_mapping=True)

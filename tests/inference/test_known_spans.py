"""Extraction with schemas, by a model that is told what to find: its characters, relations, options and windows."""

from typing import Any

import numpy as np
import pytest
from helpers.extraction import answer, assert_equal, letters
from helpers.golden_tokenizer import build

from erniem_fast.inference import extraction

CASES = {
    "zh": ("李白，字太白，是唐朝的诗人。", "太白"),
    "number": ("他出生于1988年5月，在北京。", "1988年5月"),
    "one character": ("他出生于1988年5月，在北京。", "他"),
    "last": ("他出生于1988年5月，在北京", "北京"),
    "en": ("In 1997, Steve was excited to become the CEO of Apple.", "Steve"),
    "whole": ("Steve", "Steve"),
    "spaces": ("  Tom \t and\n\nMary   sing.  ", "Mary"),
    "several words": ("Yesterday the United   Kingdom voted.", "United   Kingdom"),
    "ar": ("وُلد الرئيس في القاهرة عام 1970.", "القاهرة"),
    "hi": ("मुझे दिल्ली में रहना पसंद है।", "दिल्ली"),
    "ja": ("彼は昨日、東京で会議に出席した。", "東京"),
    "th": ("ฉันอาศัยอยู่ที่กรุงเทพ", "กรุงเทพ"),
    "full width": ("会社は　ＡＢＣ　です。", "ＡＢＣ"),
    "half-width kana": ("また、ﾄﾞｱを開けた。", "ﾄﾞｱ"),
    "ligature": ("The oﬃce is open.", "oﬃce"),
    "combining": ("Un cafe\u0301, en e\u0301te\u0301.", "e\u0301te\u0301"),
    "Greek": ("Ξέρω πού μένει.", "πού"),
    "Korean": ("이 문장은 좋다.", "문장"),
    "emoji before": ("😀👩‍👩‍👧 Paris 😀", "Paris"),
    "other plane": ("𠀀𠀁 Paris", "Paris"),
    "control": ("a\x07\u200b\ufeffb\0 Paris\u2028c", "Paris"),
    "[SEP]": ("Tom [SEP] Paris [CLS] Rome", "Paris"),
    "[UNK]": ("ཀ ඕ Paris ཀ", "Paris"),
}


@pytest.mark.parametrize("case", CASES)
def test_characters_of_known_spans(tell: Any, case: str) -> None:
    text, part = CASES[case]
    expected = [{"名": [answer(text, part)]}] if part in text else [{}]
    assert_equal(tell({"名": [part]})([text], "名"), expected)


def test_characters_where_lowercasing_changes_the_length(tell: Any) -> None:
    extract = tell({"名": ["paris"]})
    extract.tokenizer = build(do_lower_case=True)
    text = "İİ PARIS İ Paris"
    assert_equal(extract(text, "名"), {"名": [answer(text, "PARIS"), answer(text, "Paris")]})


def test_names_that_ask_the_same_keep_their_own_relations(tell: Any) -> None:
    text = "Tom lives in Paris."
    extract = tell({"Person": ["Tom"], "Friend": ["Tom"], "City of Tom": ["Paris"], "Verb of Paris": ["lives"],
                    "Place of Paris": ["in"]})  # fmt: skip
    found = extract(text, {"Person": {"City": "Verb"}, "Friend": {"City": "Place"}}, language="en")
    expected = {
        "Person": [answer(text, "Tom", City=[answer(text, "Paris", Verb=[answer(text, "lives")])])],
        "Friend": [answer(text, "Tom", City=[answer(text, "Paris", Place=[answer(text, "in")])])],
    }
    assert_equal(found, expected)


def test_relations_of_each_span(tell: Any) -> None:
    text = "Tom lives in Paris, Mary in Rome. Tom likes Mary."
    extract = tell({
        "Person": ["Tom", "Mary"], "City of Tom": ["Paris"], "City of Mary": ["Rome"], "River of Rome": ["in"],
        "City": ["Rome"], "Friend of Tom": ["Mary"], "City of Rome": ["Tom"],
    })  # fmt: skip
    schema = ["River", {"Person": [{"City": "River"}, "Friend"], "City": None}]
    tom = {"City": [answer(text, "Paris")], "Friend": [answer(text, "Mary"), answer(text, "Mary", 1)]}
    rivers = [answer(text, "in"), answer(text, "in", 1)]
    mary = {"City": [answer(text, "Rome", River=rivers)]}
    found = extract([text, ""], schema, language="en")
    expected = {
        "Person": [
            answer(text, "Tom", **tom), answer(text, "Mary", **mary), answer(text, "Tom", 1, **tom),
            answer(text, "Mary", 1, **mary),
        ],
        "City": [answer(text, "Rome")],
    }  # fmt: skip
    assert_equal(found, [expected, {}])
    # One pass a level, and each prompt once, however often its span is there.
    assert sorted(extract.model.prompts) == sorted(
        letters(prompt)
        for prompt in ("River", "Person", "City", "City of Tom", "City of Mary", "Friend of Tom", "Friend of Mary",
                       "River of Paris", "River of Rome")
    )  # fmt: skip
    # Equal answers are not one object: what a caller changes stays where it is.
    found[0]["Person"][0]["relations"]["City"].clear()
    assert found[0]["Person"][2]["relations"]["City"]


def test_opinions(tell: Any) -> None:
    text = "店面很好，服务很慢"
    extract = tell({
        "评价维度": ["店面", "服务"], "店面的观点词": ["很好"], "服务的观点词": ["很慢"],
        "店面的情感倾向[正向,负向]": ["正向"], "服务的情感倾向[正向,负向]": ["负向", ("正向", 0.75, 0.75)],
    })  # fmt: skip
    name = "情感倾向[正向，负向]"
    found = extract(text, {"评价维度": ["观点词", name]})
    expected = [
        answer(text, "店面", **{"观点词": [answer(text, "很好")], name: [{"text": "正向", "probability": 0.65625}]}),
        answer(text, "服务", **{"观点词": [answer(text, "很慢")], name: [{"text": "负向", "probability": 0.65625}]}),
    ]
    assert_equal(found, {"评价维度": expected})


def test_options_in_english_and_names_below_them(tell: Any) -> None:
    text = "Tom sings."
    extract = tell({
        "Tone of Tom [good, so so]": ["so so"], "Person": ["Tom"], "Reason of so so": ["sings"],
        "Tone [good, so so]": ["good"],
    })  # fmt: skip
    tone, below = "Tone [good, so so]", {"Reason": [answer(text, "sings")]}
    (found,) = extract([text], [{"Person": {tone: "Reason"}}, tone], language="en")
    tom = answer(text, "Tom", **{tone: [{"text": "so so", "probability": 0.65625, "relations": below}]})
    assert_equal(found, {"Person": [tom], tone: [{"text": "good", "probability": 0.65625}]})


def test_numbers_of_numpy(tell: Any) -> None:
    extract = tell({"名": [("Tom", 0.625, 0.75)]})
    extract.batch_tokens = np.int64(9)
    assert extract("Tom", "名", threshold=np.float32(0.6), stride=np.int32(3)) == extract("Tom", "名")


def test_each_boundary_must_exceed_the_threshold(tell: Any) -> None:
    text = "Tom met Mary and John."
    extract = tell({"名": [("Tom", 0.5, 0.9), ("Mary", 0.9, 0.5), ("John", 0.625, 0.625)]})
    assert_equal(extract([text], "名"), [{"名": [answer(text, "John", probability=0.625**2)]}])
    assert_equal(extract([text], "名", threshold=0.625), [{}])
    assert_equal(extract(text, "名", threshold=0.49)["名"][0], answer(text, "Tom", probability=0.45))


@pytest.mark.parametrize("stride", [6, 20])
def test_no_span_is_lost_at_a_cut(tell: Any, stride: int) -> None:
    """Spans of up to `stride` tokens, at every place of a text of several windows, come once and whole."""
    extract = tell({"名": ["Tom Mary Tom"]})
    texts = ["a " * place + "Tom Mary  Tom" + " a" * (140 - place) for place in range(141)]
    assert_equal(extract(texts, "名", stride=stride), [{"名": [answer(text, "Tom Mary  Tom")]} for text in texts])


@pytest.mark.slow
def test_a_text_of_a_million_characters(tell: Any) -> None:
    extract = tell({"名": ["Tom"]})
    filler = "a " * 250_000
    text = filler + "Tom " + filler + "Tom"
    assert_equal(extract([text], "名", stride=2), [{"名": [answer(text, "Tom"), answer(text, "Tom", 1)]}])


def test_a_span_too_long_for_a_prompt_is_not_asked_about(tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(extraction, "warn_once", said.append)
    long = "Tom and Mary " * 10
    text = f"{long}, John"
    extract = tell({"名": [long.strip(), "John"], "John的名": ["John"], long + "的名": ["John"]})
    john = [answer(text, "John")]
    expected = [answer(text, long.strip()), answer(text, "John", **{"名": john})]
    assert_equal(extract([text], {"名": "名"}), [{"名": expected}])
    assert said == ["Spans whose prompts would have more than 28 tokens are not asked about."]

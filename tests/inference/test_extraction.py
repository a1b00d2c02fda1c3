"""Extraction with schemas: against slow code, on any text, a part at a time, and what is refused."""

from typing import Any

import pytest
from helpers.extraction import Slow, assert_equal, count, make_pair
from helpers.pairs import as_fast
from hypothesis import given, settings
from hypothesis import strategies as st

import erniem_fast
from erniem_fast import ErnieMForInformationExtraction, information_extraction, reference
from erniem_fast.cli.verify import sample
from erniem_fast.inference import extraction


@pytest.fixture(scope="module")
def tokenizer(golden_tokenizer: Any) -> Any:
    return golden_tokenizer


@pytest.fixture
def pair(tokenizer: Any) -> tuple[Any, Any]:
    return make_pair(len(tokenizer))


SCHEMA = {"时间": {}, "人物": {"出生地": {"国家": {}}, "情感倾向[正向，负向]": {}}, "Tone [good, bad]": {"why": {}}}


@pytest.mark.parametrize("language", ["zh", "en"])
def test_spans_are_those_of_slow_code(pair: Any, tokenizer: Any, language: str) -> None:
    plain, fast = pair
    texts = [
        "Tom was born in 1987.",
        "",
        "李白是唐朝诗人，字太白。",
        "  \n",
        "وُلدت في القاهرة",
        "Tom was born in 1987.",
    ]
    slow = Slow(plain, tokenizer, language, 0.5, 128)
    extract = information_extraction(fast, tokenizer, batch_tokens=150)
    expected = [slow.extract(text, SCHEMA) for text in texts]
    assert_equal(extract(texts, SCHEMA, language=language), expected)
    assert_equal(extract(texts[0], SCHEMA, language=language), expected[0])
    assert expected[1] == expected[3] == {}


@pytest.mark.parametrize("stride", [0, 7, 128])
def test_windows_are_merged_as_by_slow_code(pair: Any, tokenizer: Any, stride: int) -> None:
    plain, fast = pair
    texts = [text for _, text in sample() if 150 < len(text) < 500][:3]
    schema = {"时间": {}, "Tone [good, bad]": {}}
    slow = Slow(plain, tokenizer, "zh", 0.5, stride)
    expected = [slow.extract(text, schema) for text in texts]
    assert slow.most_windows > 2
    assert count(expected) > 5
    extract = information_extraction(fast, tokenizer)
    assert_equal(extract(texts, schema, stride=stride), expected)


@pytest.mark.slow
def test_every_language_is_as_by_slow_code(pair: Any, tokenizer: Any) -> None:
    plain, fast = pair
    texts = [text for _, text in sample()]
    slow = Slow(plain, tokenizer, "zh", 0.5, 10)
    extract = information_extraction(fast, tokenizer)
    expected = [slow.extract(text, {"时间": {}, "Tone [good, bad]": {"why": {}}}) for text in texts]
    assert slow.most_windows > 5
    assert count(expected) > 200
    assert_equal(extract(texts, ["时间", {"Tone [good, bad]": "why"}], stride=10), expected)


def test_texts_that_are_hardly_texts(tell: Any) -> None:
    extract = tell({"名": ["Paris"]})
    texts = ["", " \t\n\u3000", "\u200b\ufeff", "ཀ", "\0", "[SEP]", "[CLS] [PAD] [MASK]", "e\u0301" * 99, "\U0010ffff"]
    assert extract(texts, "名") == [{}] * len(texts)
    assert extract([], "名") == []


TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("Tom 的中ｶﾞ①½ﬁ\t\0[SEP]，ا")), max_size=80
)


@pytest.fixture(scope="module")
def random_extractor(tokenizer: Any) -> Any:
    return information_extraction(make_pair(len(tokenizer))[1], tokenizer)


def assert_sound(text: str, result: dict, threshold: float) -> None:
    for answers in result.values():
        assert answers
        last = 0
        for found in answers:
            assert threshold**2 < found["probability"] <= 1
            if "start" in found:
                assert 0 <= found["start"] < found["end"] <= len(text)
                assert found["text"] == text[found["start"] : found["end"]]
                assert found["start"] >= last
                last = found["start"]
            else:
                assert found["text"] in ("good", "bad")
            assert_sound(text, found.get("relations", {}), threshold)


@settings(max_examples=20)
@given(texts=st.lists(TEXTS, max_size=4), data=st.data())
def test_any_text(random_extractor: Any, texts: list[str], data: st.DataObject) -> None:
    """Spans are the text's own characters, and depend on no other text, no order and no batch."""
    schema = {"人物": {"Tone [good, bad]": None}, "时间": None}
    results = random_extractor(texts, schema, threshold=0.5)
    for text, result in zip(texts, results, strict=True):
        assert_sound(text, result, 0.5)
    other = information_extraction(
        random_extractor.model, random_extractor.tokenizer, batch_tokens=data.draw(st.sampled_from((1, 99)))
    )
    order = data.draw(st.permutations(range(len(texts))))
    others = other([texts[i] for i in order], schema, threshold=0.5)
    assert_equal(others, [results[i] for i in order])


def test_texts_come_a_part_at_a_time(tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    extract = tell({"名": ["Tom"], "Tom的名": ["Mary"]})
    texts = [f"Tom {index} Mary" for index in range(7)]
    whole = extract(texts, {"名": "名"})
    assert extract.model.prompts.count("名") == 7
    for name, most in (("TEXTS_PER_PASS", 2), ("CHARACTERS_PER_PASS", 25)):
        with monkeypatch.context() as patch:
            patch.setattr(extraction, name, most)
            extract.model.prompts.clear()
            results = extract.stream(texts, {"名": "名"})
            assert extract.model.prompts == []
            assert [next(results), next(results)] == whole[:2]
            assert extract.model.prompts == ["名", "名", "Tom的名", "Tom的名"]
            assert list(results) == whole[2:]


def test_a_progress_bar_that_ends(tell: Any, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    extract = tell({"名": ["Tom"], "Tom的名": ["Mary"]})
    extract(["Tom", "Mary", ""], {"名": {"名": "名"}}, progress=True)
    shown = capsys.readouterr().err
    assert "Extracting: 100%" in shown
    assert "3.00/3.00" in shown
    for asked, is_shown in ((None, False), (True, True), (False, False)):
        extract(["Tom"], "名", progress=asked)
        assert bool(capsys.readouterr().err) == is_shown
    monkeypatch.setattr(extraction, "MANY_CHARACTERS", 4)
    for asked, is_shown in ((None, True), (False, False)):
        extract(["Tom", "Tom"], "名", progress=asked)
        assert bool(capsys.readouterr().err) == is_shown


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"texts": ["a", None]}, TypeError, r"texts\[1\] must be a str, got NoneType"),
        ({"texts": [b"a"]}, TypeError, r"texts\[0\] must be a str, got bytes"),
        ({"texts": [["a"]]}, TypeError, r"texts\[0\] must be a str, got list"),
        ({"texts": None}, TypeError, "texts must be"),
        (
            {"texts": ["a", "b\ud83d"]},
            ValueError,
            r"texts\[1\] holds a lone surrogate, '\\ud83d' at 1; expected text that",
        ),
        ({"schema": {"a": "\udc00"}}, ValueError, r"schema\['a'\] has a name that holds a lone surrogate"),
        ({"language": "de"}, ValueError, "language must be one of zh, en, got 'de'"),
        ({"language": None}, ValueError, "language must be one of zh, en, got None"),
        ({"language": ["zh"]}, ValueError, "language must be one of zh, en"),
        ({"threshold": 1}, ValueError, "threshold must be a number of at least 0 and below 1, got 1"),
        ({"threshold": -0.1}, ValueError, "threshold must be"),
        ({"threshold": float("nan")}, ValueError, "threshold must be"),
        ({"threshold": "0.5"}, ValueError, "threshold must be"),
        ({"threshold": True}, ValueError, "threshold must be"),
        ({"stride": -1}, ValueError, "stride must be a whole number of at least 0, got -1"),
        ({"stride": 1.5}, ValueError, "stride must be a whole number"),
        ({"schema": ["a", "a"]}, ValueError, "schema holds the name 'a' twice"),
        ({"schema": {"a": "\u200b"}}, ValueError, "name '\\\\u200b', of 0 tokens; expected names of 1 to 28 tokens"),
        ({"schema": "Tom " * 40}, ValueError, "tokens; expected names of 1 to 28 tokens"),
    ],
)
def test_arguments_that_are_refused(tell: Any, arguments: dict, error: type[Exception], message: str) -> None:
    extract = tell({})
    with pytest.raises(error, match=message):
        extract.stream(**({"texts": ["a"], "schema": "名"} | arguments))
    assert extract.model.prompts == []


@pytest.mark.parametrize("name", ["ErnieMForQuestionAnswering", "ErnieMForTokenClassification", "ErnieMModel"])
def test_models_without_the_head(tiny_config: Any, tokenizer: Any, name: str) -> None:
    with pytest.raises(
        TypeError, match=rf"model must be an erniem_fast\.ErnieMForInformationExtraction, got .*\.{name}"
    ):
        information_extraction(getattr(erniem_fast, name)(tiny_config()).eval(), tokenizer)


def test_what_is_no_pair_of_model_and_tokenizer(tiny_config: Any, tokenizer: Any) -> None:
    model = ErnieMForInformationExtraction(tiny_config())
    with pytest.raises(TypeError, match="model must be"):
        information_extraction(reference.ErnieMForInformationExtraction(tiny_config()), tokenizer)
    with pytest.raises(TypeError, match=r"tokenizer must be an erniem_fast\.ErnieMTokenizer, got builtins.str"):
        information_extraction(model, "uie-m-base")
    for batch_tokens in (0, 1.5, True, None):
        with pytest.raises(ValueError, match="batch_tokens must be a whole number of at least 1, got"):
            information_extraction(model, tokenizer, batch_tokens=batch_tokens)
    extract = information_extraction(model.eval(), tokenizer)
    model.train()
    with pytest.raises(
        ValueError, match="model must be in eval mode, or dropout makes the results random; got training"
    ):
        extract.stream(["Tom"], "名")


def test_weights_that_give_nan(pair: Any, tokenizer: Any) -> None:
    _, fast = pair
    fast.linear_end.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="model must give finite scores, got NaN"):
        information_extraction(fast, tokenizer)(["Tom"], "名")


@pytest.mark.slow
def test_adapters(pair: Any, tokenizer: Any) -> None:
    peft = pytest.importorskip("peft")
    fast = pair[1]
    config = peft.LoraConfig(target_modules=["q_proj", "linear1"], init_lora_weights=False)
    adapted = peft.get_peft_model(fast, config).eval()
    texts = [text for _, text in sample()][:5]
    results = information_extraction(adapted, tokenizer)(texts, "时间", threshold=0.1)
    merged = as_fast(adapted.merge_and_unload().eval())
    assert_equal(results, information_extraction(merged, tokenizer)(texts, "时间", threshold=0.1))
    assert count(results) > 0

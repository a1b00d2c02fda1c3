"""Extraction with schemas: against slow code on the reference model, and against spans that a model is told to find."""

import copy
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.golden_tokenizer import build
from helpers.pairs import as_fast, make
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_outputs import QuestionAnsweringModelOutput

import erniem_fast
from erniem_fast import ErnieMConfig, ErnieMForInformationExtraction, information_extraction, reference
from erniem_fast.cli.verify import sample
from erniem_fast.inference import extraction
from erniem_fast.inference.spans import windows
from erniem_fast.packing import PackedBatch

Results = list[dict[str, list[dict[str, Any]]]]
MAX_TOKENS = 64


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build()


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Any) -> int:
    return len(tokenizer)


@pytest.fixture
def pair(vocabulary: int) -> tuple[Any, Any]:
    """The reference and the padding-free model, in which three of ten tokens start or end a span."""
    return make_pair(vocabulary)


def make_pair(vocabulary: int) -> tuple[Any, Any]:
    plain, _ = make("ErnieMForInformationExtraction", vocab_size=vocabulary)
    output = plain(torch.randint(4, vocabulary, (20, MAX_TOKENS)))
    with torch.no_grad():
        for head, logits in ((plain.linear_start, output.start_logits), (plain.linear_end, output.end_logits)):
            head.bias.sub_(logits.quantile(0.7))
    return plain, as_fast(plain)


# Slow code: every prompt, text and window alone, on the reference model


class Slow:
    def __init__(self, model: Any, tokenizer: Any, language: str, threshold: float, stride: int) -> None:
        self.model, self.tokenizer, self.language = model, tokenizer, language
        self.threshold, self.stride = threshold, stride
        self.most_windows = 0

    def extract(self, text: str, schema: dict, parent: str | None = None) -> dict:
        result = {}
        for name, below in schema.items():
            stem, bracket, _ = name.partition("[")
            prompt = name
            if parent is not None and self.language == "zh":
                prompt = parent + "的" + name
            elif parent is not None:
                prompt = stem.strip() + " of " + parent + (" [" + _ if bracket else "")
            prompt = "".join(chr(ord(c) - 0xFEE0) if "！" <= c <= "～" else c for c in prompt)
            answers = self.choose(text, prompt, name) if bracket else self.find(text, prompt)
            for answer in answers:
                relations = self.extract(text, below, answer["text"])
                if relations:
                    answer["relations"] = relations
            if answers:
                result[name] = answers
        return result

    def parts(self, text: str, prompt: str) -> Iterator[tuple[int, int, int, np.ndarray]]:
        """Start and stop of each window, tokens of the prompt, and the probabilities of the row."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        asked = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if not ids or len(asked) > MAX_TOKENS // 2 - 4:
            return
        found = windows(len(ids), MAX_TOKENS - 4 - len(asked), self.stride)
        self.most_windows = max(self.most_windows, len(found))
        for window in found:
            row = [0, *asked, 2, 2, *ids[window.start : window.stop], 2]
            if len(found) == 1:
                assert row == self.tokenizer(prompt, text)["input_ids"]
            with torch.inference_mode():
                output = self.model(torch.tensor([row]))
            both = torch.stack((output.start_logits[0], output.end_logits[0])).sigmoid()
            yield window.start, window.stop, len(asked), both.numpy()

    def spans(self, starts: np.ndarray, ends: np.ndarray) -> Iterator[tuple[int, int, float]]:
        at = np.flatnonzero(ends > self.threshold)
        for end in at:
            before = [s for s in range(end + 1) if starts[s] > self.threshold and not ((at >= s) & (at < end)).any()]
            if before:
                yield max(before), end, float(starts[max(before)] * ends[end])

    def find(self, text: str, prompt: str) -> list[dict]:
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        parts = list(self.parts(text, prompt))
        if not parts:
            return []
        # Each token as the window sees it in whose middle it lies most; the later one of two.
        chosen = [
            max(range(len(parts)), key=lambda i: (-abs(2 * token + 1 - parts[i][0] - parts[i][1]), i))
            for token in range(len(offsets))
        ]
        starts, ends = (
            np.array([parts[i][3][kind, parts[i][2] + 3 + t - parts[i][0]] for t, i in enumerate(chosen)])
            for kind in (0, 1)
        )
        answers: dict = {}
        for first, last, probability in self.spans(starts, ends):
            start, end = offsets[first][0], offsets[last][1]
            if end > start and any(part[0] <= first and last < part[1] for part in parts):
                answers[start, end] = max(answers.get((start, end), 0.0), probability)
        return [
            {"text": text[start:end], "start": start, "end": end, "probability": probability}
            for (start, end), probability in answers.items()
        ]

    def choose(self, text: str, prompt: str, name: str) -> list[dict]:
        offsets = self.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        written = [option.strip() for option in name[name.index("[") + 1 : -1].replace("，", ",").split(",")]
        places, place = [], prompt.rindex("[")
        for option in written:
            place = prompt.index(option, place)
            places.append(range(place, place + len(option)))
            place += len(option)

        def option_of(token: int) -> int:
            held = [i for i, option in enumerate(places) if set(option) & set(range(*offsets[token]))]
            return held[0] if held else -1

        votes: dict[int, list[float]] = {}
        for _, _, length, row in self.parts(text, prompt):
            spans = list(self.spans(*row[:, 1 : 1 + length]))
            inside = [(p, option_of(s)) for s, e, p in spans if option_of(s) == option_of(e) >= 0]
            if inside:
                probability, option = max(inside)
                votes.setdefault(option, []).append(probability)
        if not votes:
            return []
        best = max(votes, key=lambda option: (len(votes[option]), sum(votes[option])))
        return [{"text": written[best], "probability": sum(votes[best]) / len(votes[best])}]


def assert_equal(found: Any, expected: Any) -> None:
    """The same answers in the same order, and probabilities but for rounding."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-9)
    else:
        assert found == expected


def count(results: Any) -> int:
    if isinstance(results, list):
        return sum(map(count, results))
    return sum(1 + count(answer.get("relations", {})) for answers in results.values() for answer in answers)


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


# Spans that a model is told


def letters(text: str) -> str:
    """Text as the tokenizer's tokens hold it."""
    return "".join(unicodedata.normalize("NFKC", text).split())


class Told(ErnieMForInformationExtraction):
    """A model that finds what it is told, by the letters of the tokens that it reads.

    `told` maps a prompt to answers: text, probability of the start, probability of the end.
    """

    tokenizer: Any
    told: dict[str, list[tuple[str, float, float]]]
    prompts: list[str]

    def forward(self, input_ids: Any = None, **options: Any) -> Any:
        assert isinstance(input_ids, PackedBatch)
        start, end = torch.full((2, 1, input_ids.total_tokens), -8.0, dtype=torch.float64)
        for first, stop in zip(input_ids.cu_seqlens[:-1].tolist(), input_ids.cu_seqlens[1:].tolist(), strict=True):
            row = input_ids.input_ids[first:stop].tolist()
            assert len(row) <= self.config.max_tokens
            tokens = [token.replace("▁", "") for token in self.tokenizer.convert_ids_to_tokens(row)]
            middle = row.index(2)
            assert (row[0], row[middle : middle + 2], row[-1]) == (0, [2, 2], 2)
            prompt = "".join(tokens[1:middle])
            self.prompts.append(prompt)
            inside = range(1, middle) if "[" in prompt else range(middle + 2, len(row) - 1)
            line = [(letter, place) for place in inside for letter in tokens[place]]
            text = "".join(letter for letter, _ in line)
            for answer, *chances in self.told.get(prompt, []):
                place = text.find(letters(answer))
                while place >= 0:
                    last = place + len(letters(answer)) - 1
                    for logits, letter, chance in zip((start, end), (place, last), chances, strict=True):
                        logits[0, first + line[letter][1]] = float(np.log(chance / (1 - chance)))
                    place = text.find(letters(answer), last + 1)
        return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)


@pytest.fixture
def tell(tokenizer: Any, vocabulary: int) -> Any:
    config = ErnieMConfig(
        vocab_size=vocabulary, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=MAX_TOKENS + 2,
    )  # fmt: skip
    model = Told(config).eval()

    def make_extractor(told: dict[str, list]) -> Any:
        model.tokenizer, model.prompts = tokenizer, []
        model.told = {
            letters(prompt): [part if isinstance(part, tuple) else (part, 0.875, 0.75) for part in parts]
            for prompt, parts in told.items()
        }
        return information_extraction(model, tokenizer)

    return make_extractor


def answer(text: str, part: str, nth: int = 0, probability: float = 0.875 * 0.75, **relations: Any) -> dict:
    start = -1
    for _ in range(nth + 1):
        start = text.index(part, start + 1)
    found = {"text": part, "start": start, "end": start + len(part), "probability": probability}
    return found | ({"relations": relations} if relations else {})


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


def test_texts_that_are_hardly_texts(tell: Any) -> None:
    extract = tell({"名": ["Paris"]})
    texts = ["", " \t\n\u3000", "\u200b\ufeff", "ཀ", "\0", "[SEP]", "[CLS] [PAD] [MASK]", "e\u0301" * 99, "\U0010ffff"]
    assert extract(texts, "名") == [{}] * len(texts)
    assert extract([], "名") == []


TEXTS = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("Tom 的中ｶﾞ①½ﬁ\t\0[SEP]，ا")), max_size=80
)


@pytest.fixture(scope="module")
def random_extractor(tokenizer: Any, vocabulary: int) -> Any:
    torch.manual_seed(torch.seed() % 2**31)
    return information_extraction(make_pair(vocabulary)[1], tokenizer)


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


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4), data=st.data())
def test_any_text(random_extractor: Any, texts: list[str], data: st.DataObject) -> None:
    """Spans are the text's own characters, and depend on no other text, no order and no batch."""
    schema = {"人物": {"Tone [good, bad]": None}, "时间": None}
    results = random_extractor(texts, schema, threshold=0.5)
    for text, result in zip(texts, results, strict=True):
        assert_sound(text, result, 0.5)
    other = copy.copy(random_extractor)
    other.batch_tokens = data.draw(st.sampled_from((1, 99)))
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
    with pytest.raises(TypeError, match=rf"model must be an erniem_fast\.ErnieMForInformationExtraction, got {name}"):
        information_extraction(getattr(erniem_fast, name)(tiny_config()).eval(), tokenizer)


def test_what_is_no_pair_of_model_and_tokenizer(tiny_config: Any, tokenizer: Any) -> None:
    model = ErnieMForInformationExtraction(tiny_config())
    with pytest.raises(TypeError, match="model must be"):
        information_extraction(reference.ErnieMForInformationExtraction(tiny_config()), tokenizer)
    with pytest.raises(TypeError, match=r"tokenizer must be an erniem_fast\.ErnieMTokenizer, got str"):
        information_extraction(model, "uie-m-base")
    for batch_tokens in (0, 1.5, True, None):
        with pytest.raises(ValueError, match="batch_tokens must be a whole number of at least 1, got"):
            information_extraction(model, tokenizer, batch_tokens=batch_tokens)
    extract = information_extraction(model.eval(), tokenizer)
    model.train()
    with pytest.raises(ValueError, match="model must be in eval mode, or dropout changes what it finds; got training"):
        extract.stream(["Tom"], "名")


def test_weights_that_give_nan(pair: Any, tokenizer: Any) -> None:
    _, fast = pair
    fast.linear_end.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="model gives NaN; expected finite weights"):
        information_extraction(fast, tokenizer)(["Tom"], "名")


@pytest.mark.slow
def test_adapters(pair: Any, tokenizer: Any) -> None:
    peft = pytest.importorskip("peft")
    fast = pair[1]
    config = peft.LoraConfig(target_modules=["q_proj", "linear1"], init_lora_weights=False)
    adapted = peft.get_peft_model(fast, config).eval()
    results = information_extraction(adapted, tokenizer)(["Tom was born in Paris."], SCHEMA)
    merged = as_fast(adapted.merge_and_unload().eval())
    assert_equal(results, information_extraction(merged, tokenizer)(["Tom was born in Paris."], SCHEMA))
    assert count(results) > 0

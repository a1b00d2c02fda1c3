"""The page in a browser: what it shows is what the engine computes. Needs chromium and chromedriver."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from helpers.golden_tokenizer import build
from helpers.live_server import live_server
from helpers.pairs import SIZES
from helpers.processes import PATIENCE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import erniem_fast
from erniem_fast import Encoder, ErnieMConfig
from erniem_fast.inference.server.app import PAGE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no chromium or no chromedriver"),
]
webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

TEXTS = [
    "Where is the station?",
    "<img src=x onerror=\"document.title='run'\"><b>bold</b> & &amp;",
    "أين محطة القطار؟",
    "𝒜 and 👍🏽, 𠮷野家で",
    "Wo ist der Bahnhof?",
    "e\u0301 ﬁ  two  blanks",
    "Το ψωμί είναι παλιό.",
]
MOST = 3
"""Texts of a request: the page has to ask several times."""
LABELS = {0: "contradiction", 1: "neutral", 2: "entailment"}
VISIBLE = st.characters(codec="utf-8", exclude_categories=["C", "Z"])
TAGS = {0: "O", 1: "B-PER", 2: "I-PER"}


class Page:
    """What a reader does and sees."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def open(self, address: str) -> "Page":
        self.browser.get(address)
        return self

    def __call__(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, PATIENCE, 0.05).until(lambda _: condition())

    def find(self, name: str) -> Any:
        return self.browser.find_element(By.ID, name)

    def texts(self, selector: str) -> list[str]:
        return self("return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector)

    def enter(self, lines: list[str]) -> "Page":
        """Compute lines: chromedriver's keys reach the basic multilingual plane alone."""
        self("document.getElementById('texts').value = arguments[0]", "\n".join(lines))
        self.find("compute").click()
        return self

    def compute(self, lines: list[str]) -> "Page":
        self.enter(lines)
        self.wait(lambda: self.find("results").is_displayed())
        return self

    def select(self, place: int) -> None:
        """Choose a line, and wait for its tokens."""
        button = self.browser.find_elements(By.CSS_SELECTOR, "#lines button")[place]
        if button.get_attribute("aria-pressed") != "true":
            button.click()
        self.wait(lambda: self.texts("#tokens li"))

    def scores(self) -> list[tuple[str, float]]:
        scores = map(float, self.texts("#scores .score"))
        return list(zip(self.texts("#scores .text"), scores, strict=True))

    def error(self) -> str:
        self.wait(lambda: self.find("error").is_displayed())
        return self.find("error").text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any) -> Page:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.get_log("browser")
    return Page(browser)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Encoder]:
    """The engine of a random checkpoint, which the test may use beside the server: nothing asks both at once."""
    tokenizer, made = build(), {}

    def make(name: str = "ErnieMModel", **changes: Any) -> Encoder:
        if name not in made:
            config = ErnieMConfig(**SIZES | {"vocab_size": len(tokenizer)}, **changes)
            made[name] = Encoder(getattr(erniem_fast, name)(config).eval(), tokenizer, batch_tokens=512)
        return made[name]

    return make


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., str]]:
    """Address of a server of an encoder."""
    with ExitStack() as stack:
        yield lambda encoder, **limits: stack.enter_context(live_server(encoder, **limits))[0]


@pytest.fixture(scope="module")
def embedding(encoders: Callable[..., Encoder], start: Callable[..., str]) -> tuple[str, Encoder]:
    encoder = encoders()
    return start(encoder, max_client_batch_size=MOST, payload_limit=3000), encoder


def places(encoder: Encoder, text: str) -> list[tuple[int, int]]:
    found = encoder.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    masked = zip(found["offset_mapping"], found["special_tokens_mask"], strict=True)
    return [tuple(place) for place, is_special in masked if not is_special]


def test_neighbours_are_the_nearest_by_cosine(page: Page, embedding: tuple[str, Encoder]) -> None:
    address, encoder = embedding
    page.open(address).compute(["", *TEXTS, "   "])
    assert page.texts("#lines .text") == TEXTS
    vectors = encoder.encode(TEXTS)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    for place in (0, 3):
        page.select(place)
        shown = page.scores()
        assert sorted(text for text, _ in shown) == sorted(TEXTS[:place] + TEXTS[place + 1 :])
        assert [score for _, score in shown] == sorted((score for _, score in shown), reverse=True)
        for text, score in shown:
            assert score == pytest.approx(cosines[place, TEXTS.index(text)], abs=0.001)


def test_nothing_of_a_text_becomes_markup(page: Page, embedding: tuple[str, Encoder]) -> None:
    page.open(embedding[0]).compute(TEXTS)
    page.select(1)
    assert page.texts("#spans") == [TEXTS[1]]
    assert page("return document.querySelectorAll('main img, main b').length") == 0
    assert page.browser.title == "erniem_fast"


@given(
    text=st.sampled_from(TEXTS)
    | st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=30)
)
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
def test_tokens_cover_their_characters(browser: Any, embedding: tuple[str, Encoder], text: str) -> None:
    address, encoder = embedding
    page = Page(browser).open(address).compute([text])
    page.select(0)
    assert page.texts("#spans") == [text]
    expected, done = [], 0
    for start, stop in places(encoder, text):
        if stop > max(start, done):
            expected.append(text[max(start, done) : stop])
            done = stop
    assert page.texts("#spans span") == expected
    shown = [place for place in page.texts("#tokens .place") if not place.startswith("id")]
    assert shown == [f"{start}–{stop}" for start, stop in places(encoder, text)]


def test_texts_from_right_to_left(page: Page, embedding: tuple[str, Encoder]) -> None:
    page.open(embedding[0]).compute(TEXTS)
    page.select(2)
    direction = "return getComputedStyle(document.querySelector(arguments[0])).direction"
    assert [page(direction, one) for one in ("#spans", "#tokens", "#lines li:nth-child(3) .text")] == ["rtl"] * 3
    assert page(direction, "#lines li:nth-child(1) .text") == "ltr"
    assert page(direction, "#tokens .place") == "ltr"


def test_labels_have_the_scores_of_the_model(
    page: Page, encoders: Callable[..., Encoder], start: Callable[..., str]
) -> None:
    encoder = encoders("ErnieMForSequenceClassification", id2label=LABELS, label2id={v: k for k, v in LABELS.items()})
    page.open(start(encoder, max_client_batch_size=MOST)).compute(TEXTS)
    expected = encoder.classify(TEXTS, top_k=None)
    assert page.texts("#lines .place") == [labels[0]["label"] for labels in expected]
    for place in (0, 4):
        page.select(place)
        found = page.scores()
        assert [label for label, _ in found] == [one["label"] for one in expected[place]]
        assert [score for _, score in found] == pytest.approx([one["score"] for one in expected[place]], abs=0.001)


def test_documents_are_ordered_by_a_reranker(
    page: Page, encoders: Callable[..., Encoder], start: Callable[..., str]
) -> None:
    config = ErnieMConfig(**SIZES | {"vocab_size": len(build())}, num_labels=1)
    encoder = Encoder(erniem_fast.ErnieMForSequenceClassification(config).eval(), build(), batch_tokens=512)
    page.open(start(encoder, max_client_batch_size=MOST)).compute(TEXTS)
    expected = encoder.rerank(TEXTS[0], TEXTS[1:])
    found = page.scores()
    assert sorted(text for text, _ in found) == sorted(TEXTS[1:])
    assert [score for _, score in found] == pytest.approx([one["score"] for one in expected], abs=0.001)
    assert [text for text, _ in found] == [TEXTS[1 + one["index"]] for one in expected]


def test_entities_of_a_tagger(page: Page, encoders: Callable[..., Encoder], start: Callable[..., str]) -> None:
    encoder = encoders("ErnieMForTokenClassification", id2label=TAGS, label2id={v: k for k, v in TAGS.items()})
    page.open(start(encoder, max_client_batch_size=MOST)).compute(TEXTS)
    expected = encoder.tag(TEXTS)
    page.select(4)
    assert [text for text, _ in page.scores()] == [f"{one['entity_group']}: {one['word']}" for one in expected[4]]


def test_a_key_is_asked_for_and_then_sent(
    page: Page, encoders: Callable[..., Encoder], start: Callable[..., str]
) -> None:
    page.open(start(encoders(), api_key="secret"))
    page.wait(lambda: page.find("key-part").is_displayed())
    assert not page.find("error").is_displayed()
    page.enter(TEXTS[:2])
    page.find("key").send_keys("wrong", Keys.ENTER)
    assert "401" in page.error()
    page.find("key").clear()
    page.find("key").send_keys("secret", Keys.ENTER)
    page.wait(lambda: page.find("results").is_displayed())
    page.select(1)
    assert not page.find("key-part").is_displayed()
    assert not page.find("error").is_displayed()
    assert len(page.scores()) == 1


def test_errors_are_shown_and_the_next_answer_ends_them(page: Page, embedding: tuple[str, Encoder]) -> None:
    page.open(embedding[0]).enter(["  ", ""])
    assert page.error() == "Paste at least one text."
    page.enter(["long " * 1000])
    assert page.error() == "the body has more than 3000 bytes (status 413)"
    page("document.getElementById('texts').value = 'a'")
    page.find("texts").send_keys(Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: page.find("results").is_displayed())
    assert not page.find("error").is_displayed()


def test_a_server_that_is_gone(page: Page, encoders: Callable[..., Encoder]) -> None:
    with live_server(encoders()) as (address, _):
        page.open(address).compute(TEXTS[:2])
    page.enter(TEXTS[:2])
    assert page.error() == "The server does not answer. Is it still running?"
    assert not page.find("results").is_displayed()


def test_throughput_is_live(page: Page, embedding: tuple[str, Encoder]) -> None:
    page.open(embedding[0])
    rates = ("texts-rate", "tokens-rate")
    page.wait(lambda: [page.find(name).text for name in rates] == ["0", "0"])
    page.compute(TEXTS)
    seen = page.wait(lambda: page.find("tokens-rate").text not in ("0", "–") and [page.find(one).text for one in rates])
    texts, tokens = (float(rate.replace(",", "")) for rate in seen)
    assert 0 < texts < tokens
    assert page.find("spark").get_attribute("points").count(",") >= 2


@pytest.mark.parametrize("width", [400, 1280])
def test_it_fits_its_window_and_is_reached_by_keys(page: Page, embedding: tuple[str, Encoder], width: int) -> None:
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    page.open(embedding[0]).compute([*TEXTS, "long" * 100])
    assert page("return document.documentElement.scrollWidth") <= width
    names = page("return [...document.querySelectorAll('textarea, input, select')].map((one) => one.labels.length)")
    assert names
    assert all(names)
    first, second, *_ = page.browser.find_elements(By.CSS_SELECTOR, "#lines button")
    page("arguments[0].focus()", first)
    page.browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert page.browser.switch_to.active_element == second
    assert second.get_attribute("aria-pressed") == "true"


def test_every_example_computes(page: Page, encoders: Callable[..., Encoder], start: Callable[..., str]) -> None:
    page.open(start(encoders()))
    buttons = page.browser.find_elements(By.CSS_SELECTOR, "#examples button")
    assert len(buttons) >= 3
    for button in buttons:
        button.click()
        lines = page("return document.getElementById('texts').value").split("\n")
        page.wait(lambda lines=lines: page.texts("#lines .text") == lines)
        assert not page.find("error").is_displayed()


def test_nothing_comes_from_elsewhere(page: Page, embedding: tuple[str, Encoder]) -> None:
    page.open(embedding[0]).compute(TEXTS)
    loaded = page("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert loaded
    assert all(name.startswith(embedding[0]) for name in loaded)
    # What its own policy forbids would be reported here, and so would an error of the script.
    assert page.browser.get_log("browser") == []
    addresses = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", PAGE.read_text(encoding="utf-8"))
    assert set(addresses) <= {"data:,"}

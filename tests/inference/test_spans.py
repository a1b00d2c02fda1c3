"""Windows, the pairing of starts and ends, and the choice of options."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniem_fast.inference.schema import parse_schema, prompt_of
from erniem_fast.inference.spans import Question, Tokens, pair, windows

PLACES = st.sets(st.integers(0, 30)).map(sorted)


def test_windows_by_hand() -> None:
    assert windows(10, 10, 4) == [(0, 10, 0, 10)]
    assert windows(11, 10, 4) == [(0, 10, 0, 5), (1, 11, 5, 11)]
    assert windows(22, 10, 4) == [(0, 10, 0, 8), (6, 16, 8, 14), (12, 22, 14, 22)]
    assert windows(20, 10, 0) == [(0, 10, 0, 10), (10, 20, 10, 20)]
    assert windows(9, 3, 99) == windows(9, 3, 1)
    assert windows(0, 5, 2) == [(0, 0, 0, 0)]


@given(length=st.integers(1, 400), room=st.integers(1, 60), stride=st.integers(0, 80))
def test_windows_share_and_decide(length: int, room: int, stride: int) -> None:
    found = windows(length, room, stride)
    shared = min(stride, room // 2)
    # Every token is decided on once, by a window that reads it.
    assert [token for window in found for token in range(window.first, window.last)] == list(range(length))
    assert all(window.start <= window.first <= window.last <= window.stop for window in found)
    assert {window.stop - window.start for window in found} == {min(length, room)}
    # Whatever has no more tokens than two windows share lies in one of them.
    for first in range(length):
        last = min(first + max(shared, 1), length)
        assert any(window.start <= first and last <= window.stop for window in found)
    # It is the window in whose middle the token lies most.
    for window in found:
        for token in range(window.first, window.last):
            nearest = min(abs(2 * token + 1 - other.start - other.stop) for other in found)
            assert abs(2 * token + 1 - window.start - window.stop) <= nearest + 1
    # One window fewer could not share so much.
    assert len(found) == 1 or (len(found) - 1) * (room - shared) + shared < length


def by_definition(starts: list[int], ends: list[int]) -> list[tuple[int, int]]:
    """Each end with the nearest start at or before it from which no other end lies before it."""
    spans = []
    for end in ends:
        before = [start for start in starts if start <= end and not any(start <= other < end for other in ends)]
        if before:
            spans.append((max(before), end))
    return spans


@given(starts=PLACES, ends=PLACES)
def test_pairs_are_those_of_the_definition(starts: list[int], ends: list[int]) -> None:
    chance = {place: 1 / (place + 2) for place in range(31)}
    found = pair([(place, chance[place]) for place in starts], [(place, chance[place] / 3) for place in ends])
    assert [span[:2] for span in found] == by_definition(starts, ends)
    assert [span[2] for span in found] == [chance[start] * (chance[end] / 3) for start, end, _ in found]


@pytest.mark.parametrize(
    ("starts", "ends", "expected"),
    [
        ([1], [1], [(1, 1)]),
        ([1, 2, 10], [4, 12], [(2, 4), (10, 12)]),
        ([1], [3, 5], [(1, 3)]),
        ([1, 4], [3], [(1, 3)]),
        ([5], [3], []),
        ([2, 3], [3, 5], [(3, 3)]),
        ([], [3], []),
        ([3], [], []),
    ],
)
def test_pairs_by_hand(starts: list[int], ends: list[int], expected: list[tuple[int, int]]) -> None:
    found = pair([(place, 0.5) for place in starts], [(place, 0.5) for place in ends])
    assert [span[:2] for span in found] == expected


def question(name: str = "x", text: str = "abcdefghij", room: int = 10, stride: int = 0) -> Question:
    """About a text and by a prompt whose tokens are their characters."""

    def tokens(text: str) -> Tokens:
        places = np.arange(len(text))
        return Tokens(text, places, np.stack((places, places + 1), 1))

    prompt = prompt_of(parse_schema(name)[0], None, "zh")
    return Question(tokens(text), prompt, tokens(prompt.text), windows(len(text), room, stride), 0.5)


def row(length: int, starts: dict[int, float], ends: dict[int, float]) -> np.ndarray:
    probabilities = np.full((2, length), 0.5)
    for line, places in zip(probabilities, (starts, ends), strict=True):
        for place, value in places.items():
            line[place] = value
    return probabilities


def ask(question: Question, starts: dict[int, float], ends: dict[int, float], reverse: bool = False) -> list[dict]:
    """Answers to probabilities that are the same in all windows."""
    text = row(len(question.tokens.text), starts, ends)
    nothing = row(len(question.prompt.text), {}, {})
    for window in reversed(question.windows) if reverse else question.windows:
        question.take(window, nothing, text[:, window.start : window.stop])
    return question.answers()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("room", "stride"), [(10, 0), (9, 3), (6, 3), (4, 2), (3, 1)])
def test_spans_do_not_depend_on_the_windows(room: int, stride: int, reverse: bool) -> None:
    starts, ends = {1: 0.75, 3: 0.875, 6: 1.0, 8: 0.625}, {2: 0.5625, 4: 0.75, 6: 0.75, 9: 1.0}
    assert ask(question(room=room, stride=stride), starts, ends, reverse) == [
        {"text": "bc", "start": 1, "end": 3, "probability": 0.75 * 0.5625},
        {"text": "de", "start": 3, "end": 5, "probability": 0.875 * 0.75},
        {"text": "g", "start": 6, "end": 7, "probability": 0.75},
        {"text": "ij", "start": 8, "end": 10, "probability": 0.625},
    ]


def test_a_span_that_no_window_holds_is_none() -> None:
    assert [answer["text"] for answer in ask(question(room=10), {1: 0.9}, {7: 0.9})] == ["bcdefgh"]
    assert ask(question(room=6, stride=2), {1: 0.9}, {7: 0.9}) == []


def test_a_character_of_several_tokens_is_one_answer() -> None:
    asked = question(text="a½b")
    asked.tokens = Tokens("a½b", np.arange(5), np.array([(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]))
    asked.windows = windows(5, 10, 0)
    text = row(5, {1: 0.75, 2: 0.875, 3: 0.75}, {1: 1.0, 2: 1.0, 3: 1.0})
    asked.take(asked.windows[0], row(1, {}, {}), text)
    assert asked.answers() == [{"text": "½", "start": 1, "end": 2, "probability": 0.875}]


NAME = "感[好的,坏,so so]"  # the options are characters 2 to 4, 5 to 6, 7 to 12


@pytest.mark.parametrize(
    ("starts", "ends", "expected"),
    [
        ({2: 0.75}, {3: 0.875}, ("好的", 0.75 * 0.875)),
        ({5: 1.0}, {5: 0.75}, ("坏", 0.75)),
        ({9: 0.75}, {10: 1.0}, ("so so", 0.75)),  # part of an option
        ({2: 0.75, 5: 0.875}, {3: 1.0, 5: 1.0}, ("坏", 0.875)),  # the more probable one
        ({2: 0.75}, {5: 1.0}, None),  # from one option into another
        ({0: 0.75}, {0: 1.0}, None),  # no option
        ({1: 0.75}, {3: 1.0}, None),
        ({}, {3: 1.0}, None),
    ],
)
def test_options(starts: dict, ends: dict, expected: tuple | None) -> None:
    asked = question(NAME)
    # Spans of the text are no options.
    asked.take(asked.windows[0], row(len(asked.prompt.text), starts, ends), row(10, {1: 0.9}, {2: 0.9}))
    answers = [] if expected is None else [dict(zip(("text", "probability"), expected, strict=True))]
    assert asked.answers() == answers


def test_tokens_that_hold_more_than_an_option() -> None:
    asked = question(NAME)
    offsets = np.array([(0, 1), (1, 3), (3, 5), (5, 7), (7, 9), (9, 13)])  # 感 [好 的, 坏, so ␣so]
    asked.prompt_tokens = Tokens(asked.prompt.text, np.arange(6), offsets)
    for first, last, expected in ((1, 2, "好的"), (3, 3, "坏"), (4, 5, "so so"), (0, 2, None), (1, 3, None)):
        asked.votes.clear()
        asked.take(asked.windows[0], row(6, {first: 0.75}, {last: 1.0}), row(10, {}, {}))
        assert [answer["text"] for answer in asked.answers()] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([("坏", 0.75), ("好的", 0.3), ("好的", 0.4)], ("好的", 0.35)),
        ([("坏", 0.75), ("好的", 0.6)], ("坏", 0.75)),
        ([("坏", 0.75), None, None], ("坏", 0.75)),
        ([("坏", 0.75), ("so so", 0.75)], None),
    ],
)
def test_windows_vote(votes: list, expected: tuple | None) -> None:
    answers = []
    for order in (votes, votes[::-1]):
        asked = question(NAME, text="a" * 12, room=4, stride=0)
        places = {"好的": (2, 3), "坏": (5, 5), "so so": (7, 11)}
        for window, vote in zip(asked.windows, order, strict=False):
            first, last = places[vote[0]] if vote else (0, 0)
            chance = vote[1] ** 0.5 if vote else 0.0
            prompt = row(len(asked.prompt.text), {first: chance}, {last: chance})
            asked.take(window, prompt, row(4, {}, {}))
        answers.append(asked.answers())
    assert answers[0] == answers[1]
    assert len(answers[0]) == 1
    if expected:
        assert answers[0][0]["text"] == expected[0]
        assert answers[0][0]["probability"] == pytest.approx(expected[1], rel=1e-12)

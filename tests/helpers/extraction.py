"""What tests of extraction share: slow code on the reference model, and a model that is told what to find."""

import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from erniem_fast import ErnieMForInformationExtraction
from erniem_fast.inference.spans import windows
from erniem_fast.packing import PackedBatch
from helpers.pairs import as_fast, make

MAX_TOKENS = 64


def make_pair(vocabulary: int) -> tuple[Any, Any]:
    """The reference and the padding-free model, in which three of ten tokens start or end a span."""
    plain, _ = make("ErnieMForInformationExtraction", vocab_size=vocabulary)
    output = plain(torch.randint(4, vocabulary, (20, MAX_TOKENS)))
    with torch.no_grad():
        for head, logits in ((plain.linear_start, output.start_logits), (plain.linear_end, output.end_logits)):
            head.bias.sub_(logits.quantile(0.7))
    return plain, as_fast(plain)


class Slow:
    """Extraction by obvious code: every prompt, text and window alone, on the reference model.

    Attributes:
        most_windows: largest number of windows of a text so far.
    """

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


def answer(text: str, part: str, nth: int = 0, probability: float = 0.875 * 0.75, **relations: Any) -> dict:
    """The answer that is `part`, where `text` holds it for the nth time, from 0."""
    start = -1
    for _ in range(nth + 1):
        start = text.index(part, start + 1)
    found = {"text": part, "start": start, "end": start + len(part), "probability": probability}
    return found | ({"relations": relations} if relations else {})

"""Every task takes a length that holds a token of each text, and refuses the next smaller one before it reads."""

from typing import Any

import pytest
from helpers import golden_tokenizer

from erniem_fast.files.errors import InputError
from erniem_fast.training.tasks import multiple_choice
from erniem_fast.training.tasks.classify import Classification
from erniem_fast.training.tasks.classify import Example as Labelled
from erniem_fast.training.tasks.embed import Embedding
from erniem_fast.training.tasks.extract import Extraction
from erniem_fast.training.tasks.multiple_choice import MultipleChoice
from erniem_fast.training.tasks.question_answering import QuestionAnswering
from erniem_fast.training.tasks.tag import Tagging

TOKENIZER = golden_tokenizer.build()
SINGLE, PAIR = (TOKENIZER.num_special_tokens_to_add(pair) for pair in (False, True))
LEAST: dict[str, tuple[Any, dict[str, Any], int]] = {
    "texts": (Classification, {}, SINGLE + 1),
    "pairs": (Classification, {"text_pair_column": "pair"}, PAIR + 2),
    "choices": (MultipleChoice, {}, PAIR + 2),
    "vectors": (Embedding, {}, SINGLE + 1),
    "tags": (Tagging, {}, SINGLE + 1),
    "answers": (QuestionAnswering, {}, PAIR + 2),
    "spans, whose prompts take half": (Extraction, {}, 2 * (PAIR + 1)),
}


@pytest.mark.parametrize("case", LEAST)
def test_a_length_that_holds_special_tokens_alone_is_refused(case: str) -> None:
    task, options, least = LEAST[case]
    assert task(TOKENIZER, least, **options).max_length == least
    for length in range(1, least):
        with pytest.raises(InputError, match=rf"^--max-length {length}: expected at least {least}, more than the \d"):
            task(TOKENIZER, length, **options)


@pytest.mark.parametrize("length", range(PAIR + 2, PAIR + 6))
def test_no_row_is_longer_and_each_has_both_texts(length: int) -> None:
    first, second = "今天天气很好。" * 3, "Wo ist der Bahnhof?"
    task = Classification(TOKENIZER, length, text_pair_column="pair", problem="regression")
    chooser = MultipleChoice(TOKENIZER, length)
    (feature,) = task.features([Labelled((first, second), 1.0)], True)
    (choices,) = chooser.features([multiple_choice.Example(first, (second, second), 0)], True)
    whole = TOKENIZER(first, second, truncation=True, max_length=length)["input_ids"]
    assert [feature["input_ids"], *choices["input_ids"]] == [whole] * 3
    begins = [TOKENIZER(text, add_special_tokens=False)["input_ids"][0] for text in (first, second)]
    assert len(whole) == length
    assert set(begins) <= set(whole)

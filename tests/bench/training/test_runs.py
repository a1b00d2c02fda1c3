"""The training runs work on a few made-up lines."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.report.training import draw_training

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """20 languages of 100 lines, each of a few letters of its own."""
    folder = tmp_path / "texts"
    folder.mkdir()
    draw = random.Random(0)
    for index in range(20):
        language = f"{LETTERS[index]}xx"
        words = ["".join(draw.choices(LETTERS[index : index + 5], k=4)) for _ in range(400)]
        lines = [" ".join(draw.choices(words, k=5)) for _ in range(100)]
        (folder / f"tatoeba.{language}-eng.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_dry_run_of_distillation(
    texts: Path, dry_run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.training import distilled_languages, languages

    monkeypatch.setattr(languages, "SIZES", languages.SIZES | {"hidden_size": 32, "intermediate_size": 48})
    content = dry_run(distilled_languages, "--texts", texts)
    assert content["suite"] == "training-distilled-languages"
    assert content["figures"]["the same, of the teacher's accuracy, distilled"]["at_least"] == 0.98
    assert {"accuracy of the teacher, 4 layers", "accuracy of the student distilled, 2 layers"} < set(
        content["figures"]
    )
    assert draw_training(tmp_path / "results", tmp_path) == [], "dry runs are not shown"


@pytest.mark.slow
def test_a_dry_run_of_a_steps_parts(dry_run: Callable[..., dict[str, Any]]) -> None:
    from bench.training import overhead

    content = dry_run(overhead)
    assert content["suite"] == "training-overhead"
    share = content["figures"]["share outside forward, backward and optimizer"]
    assert 0 < share["value"] < 1

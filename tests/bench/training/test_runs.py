"""The training runs work on a few made-up lines."""

import json
import random
from pathlib import Path

import pytest
import torch

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
def test_a_dry_run_of_distillation(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.training import distilled_languages, languages

    monkeypatch.setattr(languages, "SIZES", languages.SIZES | {"hidden_size": 32, "intermediate_size": 48})
    before = torch.get_num_threads()
    try:
        arguments = ["--texts", str(texts), "--tiny", "--threads", "1", "--output", str(tmp_path)]
        assert distilled_languages.main(arguments) == 0
    finally:
        torch.set_num_threads(before)
    (path,) = tmp_path.glob("training-distilled-languages-*.json")
    content = json.loads(path.read_text("utf-8"))
    assert content["tiny"]
    assert content["figures"]["the same, of the teacher's accuracy, distilled"]["at_least"] == 0.98
    assert {"accuracy of the teacher, 4 layers", "accuracy of the student distilled, 2 layers"} < set(
        content["figures"]
    )
    assert draw_training(tmp_path, tmp_path) == [], "dry runs are not shown"


@pytest.mark.slow
def test_a_dry_run_of_a_steps_parts(tmp_path: Path) -> None:
    from bench.training import overhead

    before = torch.get_num_threads()
    try:
        assert overhead.main(["--tiny", "--threads", "1", "--output", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(before)
    (path,) = tmp_path.glob("training-overhead-*.json")
    share = json.loads(path.read_text("utf-8"))["figures"]["share outside forward, backward and optimizer"]
    assert 0 < share["value"] < 1

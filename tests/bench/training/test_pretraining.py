"""The run that compares objectives, on made-up pairs."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.training import pretraining


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """60 pairs of each language, of which the first 20 have English sentences that all languages share."""
    folder = tmp_path / "texts"
    folder.mkdir()
    draw = random.Random(0)
    for language in pretraining.LANGUAGES:
        pairs = [(f"{language} satz {row} {draw.random()}", f"a sentence {row}") for row in range(20)]
        pairs += [(f"{language} text {row}", f"a text {row} of {language}") for row in range(40)]
        for side, name in enumerate((language, "eng")):
            lines = "".join(f"{pair[side]}\n" for pair in pairs)
            (folder / f"tatoeba.{language}-eng.{name}").write_text(lines, encoding="utf-8")
    return folder


def test_what_is_held_out_is_in_no_language_s_training(texts: Path) -> None:
    training, held_out = pretraining.split(texts, 10)
    assert {len(pairs) for pairs in held_out.values()} == {10}
    kept = {english for _, english in training}
    assert not kept & {english for pairs in held_out.values() for _, english in pairs}
    assert len(training) >= 30 * len(pretraining.LANGUAGES)
    assert pretraining.split(texts, 10) == (training, held_out)


def test_translations_are_found_where_vectors_are_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: the second layer's vectors are equal but for two pairs, whose English sides are exchanged."""
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.nn.functional.normalize(torch.randn(5, 8, generator=draw), dim=-1) for _ in range(2))
    sides = {"f": [first, second], "e": [first.roll(1, 0), second[[1, 0, 2, 3, 4]]]}
    monkeypatch.setattr(pretraining, "vectors", lambda model, tokenizer, texts: sides[texts[0][0]])
    model = type("Model", (), {"config": type("Config", (), {"num_hidden_layers": 2})})
    pairs = [(f"f{row}", f"e{row}") for row in range(5)]
    found = pretraining.retrieval(model, None, {"deu": pairs, "fra": pairs})  # type: ignore[arg-type]
    assert found == [(0.0, 0.0), (pytest.approx(0.6), pytest.approx(0.6))]


@pytest.mark.slow
def test_a_dry_run(texts: Path, dry_run: Callable[..., dict[str, Any]]) -> None:
    content = dry_run(pretraining, "--texts", texts)
    assert content["suite"] == "training-pretraining"
    figures = content["figures"]
    tokens = [figures[f"{name}: tokens"]["value"] for name in pretraining.MIXTURES]
    assert min(tokens) >= 512
    assert max(tokens) < 512 + 256  # a batch more at most
    for name in pretraining.MIXTURES:
        assert 0 <= figures[f"{name}: English sentence found, layer 1"]["value"] <= 1
        assert figures[f"{name}: tokens"]["value"] > 200

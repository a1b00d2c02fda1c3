"""Hyper-parameters: given ones, a preset's, defaults."""

import math

import pytest

from erniem_fast.files.errors import InputError
from erniem_fast.training.presets import PRESETS, Settings, find_preset, settings_of


def test_what_is_given_goes_before_the_preset_and_that_before_the_defaults() -> None:
    mlqa = find_preset("mlqa", "qa")
    assert mlqa.options == {"stride": 128}
    base, large = (settings_of(mlqa, width, {"epochs": 1.0, "seed": None}) for width in (768, 1024))
    assert (base.epochs, base.learning_rate, base.layer_decay, base.max_length) == (1.0, 3e-4, 0.8, 384)
    assert (large.learning_rate, large.layer_decay, large.seed) == (8e-5, 0.9, Settings().seed)
    assert settings_of(find_preset(None, "qa"), 768, {}) == Settings()
    assert set(PRESETS) == {"xnli", "conll", "mlqa"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0.0), ("learning_rate", float("nan")), ("batch_tokens", 0), ("warmup", 1.0), ("weight_decay", -0.1),
     ("layer_decay", 0.0), ("patience", 0), ("max_length", 2), ("epochs", math.inf), ("learning_rate", math.inf),
     ("weight_decay", math.inf), ("seed", -1), ("seed", 2**32)],
)  # fmt: skip
def test_values_out_of_range(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} {value}: expected"):
        settings_of(find_preset(None, "classify"), 768, {name: value})

"""Training that was interrupted goes on as if it had not been."""

from pathlib import Path

import pytest
from helpers.trained import TokenBudgetTrainer, check_resumed
from transformers import Trainer


@pytest.mark.parametrize("trainer_class", [TokenBudgetTrainer, pytest.param(Trainer, marks=pytest.mark.slow)])
def test_resumed_training_is_the_same_to_the_bit(trainer_class: type[Trainer], tmp_path: Path) -> None:
    check_resumed(trainer_class, tmp_path)

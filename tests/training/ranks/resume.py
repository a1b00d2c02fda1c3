"""Resume training, with transformers' batches and with batches by tokens."""

import sys
from pathlib import Path

from helpers.trained import TokenBudgetTrainer, check_resumed
from transformers import Trainer

for trainer_class in (Trainer, TokenBudgetTrainer):
    check_resumed(trainer_class, Path(sys.argv[1]) / trainer_class.__name__)
print("the same to the bit", flush=True)

"""Folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN_MODEL = ROOT / "tests" / "golden" / "model"
GOLDEN_TOKENIZER = ROOT / "tests" / "golden" / "tokenizer"

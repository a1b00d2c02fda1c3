"""Small checkpoints and texts for the command line."""

import json
import shutil

import pytest
import torch
from helpers.command_line import MAX_TOKENS, SIZES, TEXTS
from helpers.paths import GOLDEN_TOKENIZER
from helpers.small_models import save_checkpoint

from erniem_fast import ErnieMTokenizer, reference


@pytest.fixture(scope="session")
def tokenizer():
    return ErnieMTokenizer(GOLDEN_TOKENIZER / "sentencepiece.bpe.model", GOLDEN_TOKENIZER / "vocab.txt")


@pytest.fixture(scope="session")
def save(tokenizer):
    """Save a checkpoint with fresh random weights and the tokenizer."""

    def make(folder, name="ErnieMModel", **changes):
        return save_checkpoint(folder, tokenizer, name, **SIZES | changes)

    return make


@pytest.fixture(scope="session")
def checkpoint(save, tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def states(checkpoint, tokenizer):
    """(length, 32) of each text alone, by the reference; None for the empty ones."""
    model = reference.ErnieMModel.from_pretrained(checkpoint).eval()

    def encode(text):
        ids = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            return model(ids).last_hidden_state[0]

    return [encode(text) if text.strip() else None for text in TEXTS]


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\n".join(TEXTS).encode())
    return path


@pytest.fixture
def broken(checkpoint, save, tmp_path):
    """Make a folder that is no checkpoint, in the way asked for."""

    def make(how):
        folder = tmp_path / "broken"
        if how == "another vocabulary":
            return save(folder, vocab_size=20000)
        if how == "a smaller vocabulary":
            return save(folder, vocab_size=16001)
        if how == "missing folder":
            return folder
        shutil.copytree(checkpoint, folder)
        config = json.loads((folder / "config.json").read_text())
        weights = folder / "model.safetensors"
        match how:
            case "a file":
                return folder / "config.json"
            case "no config":
                (folder / "config.json").unlink()
            case "no weights":
                weights.unlink()
            case "no tokenizer":
                (folder / "vocab.txt").unlink()
            case "cut weights":
                weights.write_bytes(weights.read_bytes()[:1000])
            case "no JSON":
                (folder / "config.json").write_text("{")
            case "bad value":
                (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 5}))
            case "another model":
                (folder / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
            case "more layers":
                (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
            case "fewer layers":
                (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
            case "other sizes":
                (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
            case "bad tokenizer":
                (folder / "sentencepiece.bpe.model").write_bytes(b"nonsense")
        return folder

    return make

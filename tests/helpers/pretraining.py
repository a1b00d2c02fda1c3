"""What tests of pre-training share: a tiny model, and sentences of the demo as pairs and texts."""

import json
from pathlib import Path
from typing import Any

import torch

from erniem_fast import ErnieMConfig, ErnieMTokenizer
from erniem_fast.training.objectives import ErnieMForPreTraining
from erniem_fast.training.pretraining_settings import Corpora, PretrainingSettings
from helpers.paths import GOLDEN_TOKENIZER, ROOT

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


def tokenizer() -> ErnieMTokenizer:
    return ErnieMTokenizer(GOLDEN_TOKENIZER / "sentencepiece.bpe.model", GOLDEN_TOKENIZER / "vocab.txt")


def model(**changes: Any) -> ErnieMForPreTraining:
    """A new model, the same one every time."""
    torch.manual_seed(5)
    return ErnieMForPreTraining(ErnieMConfig(**({"vocab_size": 16_003} | SIZES | changes)))


def write_corpora(folder: Path) -> Corpora:
    """Short texts of the demo, and each with the next one as a pair, which need not be a translation."""
    lines = (ROOT / "erniem_fast" / "demo_data" / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [text for line in lines if len(text := json.loads(line)["text"].replace("\n", " ")) < 120]
    parallel, monolingual = folder / "pairs.tsv", folder / "texts.txt"
    pairs = zip(texts, texts[1:] + texts[:1], strict=True)
    parallel.write_text("".join(f"{one}\t{other}\n" for one, other in pairs), encoding="utf-8")
    monolingual.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return Corpora([str(parallel)], [str(monolingual)])


def told(**changes: Any) -> PretrainingSettings:
    """Settings of a short run of all four objectives, which logs every step."""
    objectives = {"mmlm": 1.0, "tlm": 1.0, "camlm": 1.0, "btmlm": 1.0}
    usual: dict[str, Any] = {
        "objectives": objectives, "steps": 6, "batch_tokens": 150, "learning_rate": 1e-3, "log_every": 1,
        "save_every": 2, "eval_every": 3, "buffer_size": 20, "dtype": "float32",
    }  # fmt: skip
    return PretrainingSettings(**(usual | changes))


def curve(folder: Path) -> list[dict[str, float]]:
    """Figures of the steps and evaluations of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

"""A small ErnieM with random weights learns to tell 20 languages apart, through `fine_tune`, on a CPU.

python -m bench.training.languages --texts DIR           # writes training-languages-<date>.json
python -m bench.training.languages --texts DIR --tiny    # a dry run of some steps

DIR holds the Tatoeba test sets of LASER, `tatoeba.deu-eng.deu` and so on: 1,000 lines of each language. The last tenth
of each file is held out, without the lines that are also among those to train on.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from bench.engine.environment import ROOT
from erniem_fast import ErnieMTokenizer
from erniem_fast.training.finetune import fine_tune
from erniem_fast.training.tasks.base import Asked
from erniem_fast.training.tasks.classify import Classification

from .folders import log_of, save_random
from .results import TrainingRun, command_line, parser

DEMO_TOKENIZER = ROOT / "erniem_fast" / "demo_data" / "tokenizer"
"""Of 16,000 pieces."""
LANGUAGES = 20
HELD_OUT = 10
"""One line in so many is held out."""
SIZES: dict[str, Any] = {
    "num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024,
    "max_position_embeddings": 130,
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "epochs": 2.0, "learning_rate": 1e-3, "batch_tokens": 2048, "layer_decay": 1.0, "warmup": 0.1, "max_length": 64,
}  # fmt: skip


def read(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Lines to train on and lines that are held out, of the first 20 languages of a folder.

    Raises:
        SystemExit: the folder holds fewer languages.
    """
    files = {path.suffix[1:]: path for path in sorted(folder.glob("tatoeba.*-eng.*")) if path.suffix != ".eng"}
    if len(files) < LANGUAGES:
        raise SystemExit(f"--texts {folder}: holds {len(files)} languages (tatoeba.xxx-eng.xxx), expected {LANGUAGES}")
    train, held_out = [], []
    for language in sorted(files)[:LANGUAGES]:
        lines = [line.strip() for line in files[language].read_text(encoding="utf-8").splitlines()]
        cut = len(lines) - len(lines) // HELD_OUT
        train += [{"text": line, "language": language} for line in lines[:cut]]
        known = set(lines[:cut])
        held_out += [{"text": line, "language": language} for line in lines[cut:] if line not in known]
    return train, held_out


def learn(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Train a model, which is put into `languages` in a folder, beside `train.jsonl` and `held-out.jsonl`.

    Returns:
        Its figures on the lines that are held out, and the seconds that it took.
    """
    train, held_out = read(options.texts)
    if options.tiny:
        train, held_out = train[::100], held_out[::20]
    for name, lines in (("train", train), ("held-out", held_out)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    save_random(folder / "random", ErnieMTokenizer.from_pretrained(DEMO_TOKENIZER), **SIZES)
    begun = monotonic()
    figures = fine_tune(
        Asked(Classification, {"label_column": "language"}),
        str(folder / "train.jsonl"), str(folder / "held-out.jsonl"),
        model=str(folder / "random"), out=str(folder / "languages"),
        settings=SETTINGS | ({"epochs": 1.0} if options.tiny else {}), dtype=options.dtype, device="cpu",
    )  # fmt: skip
    return figures | {"seconds": monotonic() - begun}


def parsed(description: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of a run that learns the languages; PyTorch takes their number of threads."""
    made = parser(description, "the folder of Tatoeba's test sets, see above")
    made.add_argument("--dtype", default="float32", help="what to compute in: float32, bfloat16")
    options = made.parse_args(argv)
    torch.set_num_threads(options.threads)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    options = parsed(__doc__, argv)
    run = TrainingRun("languages", command_line(__spec__.name, argv), options)
    with tempfile.TemporaryDirectory() as folder, run:
        figures = learn(options, Path(folder))
        run.add_figure("accuracy on held-out lines", figures["accuracy"], "%", at_least=0.95)
        run.add_figure("macro-F1", figures["macro_f1"], "%")
        run.add_figure("time, of reading and evaluating, too", figures["seconds"], "s", at_most=180)
        run.add_curves(log_of(Path(folder, "languages")), only=("loss", "accuracy"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

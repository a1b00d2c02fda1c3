"""Error and time of bfloat16 and int8 beside float32, on real text, on this processor.

python -m bench.tools.precision                    # three kinds of text, random weights of ernie-m-base's sizes
python -m bench.tools.precision --texts lines.txt  # a text a line
python -m bench.tools.precision --model DIR        # a checkpoint's weights and tokenizer

Writes `bench/results/precision-<date>.json`, from which `make bench-report` makes the table of docs/cpu.md. Errors are
those of the texts' vectors, the mean of a text's last hidden states: least and mean cosine with float32's, and the
greatest difference of a value beside float32's greatest one. Lines are cut into batches of 16 as they come.
"""

import copy
import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.engine.environment import ROOT
from erniem_fast import ErnieMModel, ErnieMTokenizer, PackedBatch, join_projections, prepack_weights
from erniem_fast.cli.verify import sample
from erniem_fast.inference.precision import auto_dtype
from erniem_fast.inference.quantisation import quantise_int8

from .real_text import Rows, Runs, parser, timed, write
from .texts import load

BATCH = 16
PAIRS, XQUAD = ROOT / "tests" / "embeddings" / "pairs.tsv", ROOT / "tests" / "golden" / "xquad" / "rows.jsonl"


def sources(path: Path | None) -> dict[str, list[str]]:
    """Texts by what they are: those of a file, or those that a checkout holds."""
    if path is not None:
        return {str(path): path.read_text("utf-8").splitlines()}
    contexts = [json.loads(line)["context"] for line in XQUAD.read_text("utf-8").splitlines()]
    return {
        "the demo's documents": [text for _, text in sample()],
        "lines of Tatoeba": [line.split("\t")[1] for line in PAIRS.read_text("utf-8").splitlines()],
        "paragraphs of XQuAD": list(dict.fromkeys(contexts)),
    }


@torch.inference_mode()
def vectors(model: ErnieMModel, batches: Sequence[PackedBatch]) -> Tensor:
    """(texts, hidden_size) float32."""
    return torch.cat([batch.mean(model(batch, return_packed=True).last_hidden_state).float() for batch in batches])


def table(models: dict[str, ErnieMModel], texts: list[str], tokenizer: ErnieMTokenizer, options: Namespace) -> Rows:
    """Each format's errors and times on some texts."""
    ids = tokenizer(texts, truncation=True, max_length=models["float32"].config.max_tokens)["input_ids"]
    sequences = [torch.tensor(row) for row in ids]
    batches = [PackedBatch.from_sequences(sequences[at : at + BATCH]) for at in range(0, len(sequences), BATCH)]
    found = {name: vectors(model, batches) for name, model in models.items()}
    exact = found["float32"]
    cosines = {name: F.cosine_similarity(vector.double(), exact.double()) for name, vector in found.items()}
    more: dict[str, dict[str, Any]] = {
        "least_cosine": {name: float(values.min()) for name, values in cosines.items()},
        "mean_cosine": {name: float(values.mean()) for name, values in cosines.items()},
        "greatest_difference": {
            name: float((vector - exact).abs().max() / exact.abs().max()) for name, vector in found.items()
        },
        "texts": dict.fromkeys(found, len(texts)),
        "tokens": dict.fromkeys(found, sum(map(len, ids))),
    }
    runs: Runs = {name: partial(vectors, model, batches) for name, model in models.items()}
    return timed(runs, options, more)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    made = parser(__doc__, seconds=10.0)
    made.add_argument("--texts", type=Path, help="file of a text a line")
    made.add_argument("--layers", type=int, default=12)
    options = made.parse_args(argv)
    torch.set_num_threads(options.threads)
    model, tokenizer = load(options.model, options.layers, options.tiny)
    models = {
        "float32": model,
        "bfloat16": copy.deepcopy(model).bfloat16(),
        "int8": quantise_int8(copy.deepcopy(model)),
    }
    for each in models.values():
        join_projections(each)
        prepack_weights(each)
    same = {"layers": options.layers, "hidden_size": model.config.hidden_size}

    def tables() -> Iterator[tuple[str, Rows]]:
        for name, texts in sources(options.texts).items():
            some = texts[:8] if options.tiny else texts
            yield name, [same | row for row in table(models, some, tokenizer, options)]

    print(f"auto: {auto_dtype(torch.device('cpu'))}")
    write(options, "precision", tables())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The demo's 96 documents on a CPU: with weights in other formats, and through sentence-transformers.

python -m bench.tools.texts                # writes bench/results/texts-<date>.json
python -m bench.tools.texts --model DIR    # with a checkpoint's weights, instead of random ones

Of ernie-m-base's sizes: 12 layers for the formats, 2 for sentence-transformers. `make bench-report` puts the figures
into docs/quantisation.md and docs/sentence_embeddings.md.
"""

import argparse
import copy
import json
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base import modules
from sentence_transformers.sentence_transformer.modules import Pooling
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
from torchao.utils import get_model_size_in_bytes

from bench.engine.environment import RESULTS, ROOT, describe, now, others_seconds
from bench.engine.results import Measured, ResultFile
from bench.engine.shapes import Sizes
from bench.engine.timing import in_turns
from erniem_fast import ErnieMModel, ErnieMTokenizer, PackedBatch, reference
from erniem_fast.inference.embed import tokenize
from erniem_fast.sentence_transformers import Transformer

DEMO = ROOT / "erniem_fast" / "demo_data"
FORMATS: dict[str, tuple[torch.dtype, Any]] = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "int8 weights, float32": (torch.float32, Int8WeightOnlyConfig),
    "int8 weights, bfloat16": (torch.bfloat16, Int8WeightOnlyConfig),
    "fp8 weights, float32": (torch.float32, Float8WeightOnlyConfig),
    "fp8 weights, bfloat16": (torch.bfloat16, Float8WeightOnlyConfig),
}
"""Formats of the linear layers' weights, and the dtype of everything else."""
FEW = 32
"""Documents in the batch of the formats."""
TOLERANCE = 1e-5
Runs = dict[str, Callable[[], Any]]
Rows = list[dict[str, Any]]


def formats(model: ErnieMModel, texts: list[str], tokenizer: ErnieMTokenizer, seconds: float) -> Rows:
    """Forwards of the first texts in one packed batch; errors are relative ones of all last hidden states."""
    sequences = tokenize(texts[:FEW], tokenizer, model.config.max_tokens).sequences
    batch = PackedBatch.from_sequences([torch.from_numpy(sequence) for sequence in sequences])
    sizes: dict[str, int] = {}
    runs: Runs = {}
    for name, (dtype, config) in FORMATS.items():
        changed = copy.deepcopy(model).to(dtype)
        if config is not None:
            quantize_(changed, config())
        sizes[name] = get_model_size_in_bytes(changed)

        def run(changed: ErnieMModel = changed) -> torch.Tensor:
            return changed(batch, return_packed=True).last_hidden_state.float()

        runs[name] = run
    exact = runs["float32"]()
    errors = {name: float((run() - exact).norm() / exact.norm()) for name, run in runs.items()}
    tokens = dict.fromkeys(runs, batch.total_tokens)
    return timed(runs, seconds, {"relative_error": errors, "model_bytes": sizes, "tokens": tokens})


def embedders(model: ErnieMModel, texts: list[str], tokenizer: ErnieMTokenizer, seconds: float) -> Rows:
    """`SentenceTransformer.encode`; errors are the greatest absolute ones of a value of a vector, against ours."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        firsts = [Transformer(folder), modules.Transformer(folder), modules.Transformer(folder)]
        firsts[2].model = reference.ErnieMModel.from_pretrained(folder)
    names = ("packed", "sentence-transformers' own module", "the same, padded model")
    runs: Runs = {}
    for name, first in zip(names, firsts, strict=True):
        embedder = SentenceTransformer(modules=[first, Pooling(model.config.hidden_size)], device="cpu")

        def run(embedder: SentenceTransformer = embedder) -> torch.Tensor:
            return torch.from_numpy(embedder.encode(texts, show_progress_bar=False))

        runs[name] = run
    ours = runs[names[0]]()
    errors = {name: float((run() - ours).abs().max()) for name, run in runs.items()}
    if max(errors.values()) > TOLERANCE:
        raise ValueError(f"vectors differ by more than {TOLERANCE}: {errors}")
    return timed(runs, seconds, {"max_error": errors, "texts": dict.fromkeys(runs, len(texts))})


def timed(runs: Runs, seconds: float, more: dict[str, dict[str, Any]]) -> Rows:
    """Rows of a table: times in turns, median ratios to the first one's, and further columns."""
    times, failures = in_turns(runs, "cpu", seconds, cold=False)
    if failures:
        raise RuntimeError(f"{failures}")
    first = times[next(iter(runs))].wall_s
    return [
        {
            "provider": name,
            "time_s": median(taken.wall_s),
            "ratio": median(one / other for one, other in zip(taken.wall_s, first, strict=True)),
            "rounds": len(first),
        }
        | {column: values[name] for column, values in more.items()}
        for name, taken in times.items()
    ]


def load(path: str | None, layers: int, tiny: bool) -> tuple[ErnieMModel, ErnieMTokenizer]:
    """The first layers of a checkpoint, or a model with random weights, and the tokenizer."""
    if path is not None:
        model = ErnieMModel.from_pretrained(path, num_hidden_layers=layers, ignore_mismatched_sizes=True)
        return model.eval(), ErnieMTokenizer.from_pretrained(path)
    tokenizer = ErnieMTokenizer.from_pretrained(DEMO / "tokenizer")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_heads": 4, "intermediate_size": 48} if tiny else {}
    config = Sizes(vocab_size=len(tokenizer), num_layers=layers, **sizes).config()
    return ErnieMModel(config).eval(), tokenizer


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a checkpoint of ernie-m-base's depth or deeper")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--seconds", type=float, default=40.0, help="seconds of timing for each of the two tables")
    parser.add_argument("--tiny", action="store_true", help="dry run on a tiny model")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    lines = (DEMO / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines][: 8 if options.tiny else None]
    about = describe("cpu") | {"suite": "texts", "tiny": options.tiny, "checkpoint": options.model}
    about["versions"] |= {name: version(name) for name in ("sentence-transformers", "torchao")}
    file = ResultFile.new(options.output / f"texts-{about['date'][:10]}.json", about)
    begun, others = monotonic(), others_seconds()
    run: dict[str, Any] = {"date": now()}
    file.begin(run)
    for operation, table, layers in (("formats", formats, 12), ("sentence-transformers", embedders, 2)):
        model, tokenizer = load(options.model, layers, options.tiny)
        same = {"operation": operation, "layers": layers, "hidden_size": model.config.hidden_size}
        rows = [same | row for row in table(model, texts, tokenizer, 0.0 if options.tiny else options.seconds)]
        file.add(operation, Measured(rows))
        for row in rows:
            print(f"{operation:22} {row['provider']:45}{row['time_s']:8.3f} s{row['ratio']:8.2f}x")
    run["seconds"] = round(monotonic() - begun, 1)
    if others is not None:
        run["others_busy_cores"] = round(((others_seconds() or others) - others) / run["seconds"], 2)
    file.write()
    print(file.path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

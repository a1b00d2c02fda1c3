"""The demo's 96 documents on a CPU: with weights in other formats, and through sentence-transformers.

python -m bench.tools.texts                # writes bench/results/texts-<date>.json
python -m bench.tools.texts --model DIR    # with a checkpoint's weights, instead of random ones

Of ernie-m-base's sizes: 12 layers for the formats, 2 for sentence-transformers. `make bench-report` puts the figures
into docs/quantisation.md and docs/sentence_embeddings.md.
"""

import copy
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base import modules
from sentence_transformers.sentence_transformer.modules import Pooling
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
from torchao.utils import get_model_size_in_bytes

from erniem_fast import ErnieMModel, ErnieMTokenizer, PackedBatch, reference
from erniem_fast.cli.verify import sample
from erniem_fast.inference.texts import TextTokens
from erniem_fast.sentence_transformers import Transformer

from .real_text import Rows, Runs, parser, random_model, timed, write

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


def formats(model: ErnieMModel, texts: list[str], tokenizer: ErnieMTokenizer, options: Namespace) -> Rows:
    """Forwards of the first texts in one packed batch; errors are relative ones of all last hidden states."""
    rows = TextTokens(tokenizer, model.config.max_tokens).tokenize(texts[:FEW])
    batch = PackedBatch.from_sequences([torch.from_numpy(row.ids) for row in rows])
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
    return timed(runs, options, {"relative_error": errors, "model_bytes": sizes, "tokens": tokens})


def embedders(model: ErnieMModel, texts: list[str], tokenizer: ErnieMTokenizer, options: Namespace) -> Rows:
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
    return timed(runs, options, {"max_error": errors, "texts": dict.fromkeys(runs, len(texts))})


def load(path: str | None, layers: int, tiny: bool) -> tuple[ErnieMModel, ErnieMTokenizer]:
    """The first layers of a checkpoint, or a model with random weights, and the tokenizer."""
    if path is not None:
        model = ErnieMModel.from_pretrained(path, num_hidden_layers=layers, ignore_mismatched_sizes=True)
        return model.eval(), ErnieMTokenizer.from_pretrained(path)
    return random_model(ErnieMModel, layers, tiny)


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    options = parser(__doc__, seconds=40.0).parse_args(argv)
    torch.set_num_threads(options.threads)
    texts = [text for _, text in sample()][: 8 if options.tiny else None]

    def tables() -> Iterator[tuple[str, Rows]]:
        for operation, table, layers in (("formats", formats, 12), ("sentence-transformers", embedders, 2)):
            model, tokenizer = load(options.model, layers, options.tiny)
            same = {"layers": layers, "hidden_size": model.config.hidden_size}
            yield operation, [same | row for row in table(model, texts, tokenizer, options)]

    write(options, "texts", tables(), ("sentence-transformers", "torchao"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

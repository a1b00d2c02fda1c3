"""Error and time of bfloat16 and int8 beside float32, on real text, on this processor.

python -m bench.tools.precision                    # the demo's 96 documents, random weights of ernie-m-base's sizes
python -m bench.tools.precision --texts lines.txt  # a text a line
python -m bench.tools.precision --model DIR        # a checkpoint's weights and tokenizer

Errors are those of the texts' vectors, the mean of a text's last hidden states: least and mean cosine with float32's,
and the greatest difference of a value beside float32's greatest one. Times are medians of turns, float32's over the
format's own: above 1 it is faster. Lines are cut into batches of 16 in the order in which they come.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.engine.timing import in_turns
from erniem_fast import ErnieMModel, PackedBatch, join_projections
from erniem_fast.cli.verify import sample
from erniem_fast.inference.precision import auto_dtype
from erniem_fast.inference.quantisation import quantise_int8

from .real_text import Runs, parser, random_model
from .texts import load

BATCH = 16


@torch.inference_mode()
def vectors(model: ErnieMModel, batches: Sequence[PackedBatch]) -> Tensor:
    """(texts, hidden_size) float32."""
    return torch.cat([batch.mean(model(batch, return_packed=True).last_hidden_state).float() for batch in batches])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    made = parser(__doc__, seconds=30.0)
    made.add_argument("--texts", type=Path, help="file of a text a line")
    made.add_argument("--layers", type=int, default=12)
    options = made.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.model is None:
        model, tokenizer = random_model(ErnieMModel, options.layers, options.tiny)
    else:
        model, tokenizer = load(options.model, options.layers, options.tiny)
    texts = [text for _, text in sample()] if options.texts is None else options.texts.read_text("utf-8").splitlines()
    ids = tokenizer(texts, truncation=True, max_length=model.config.max_tokens)["input_ids"]
    sequences = [torch.tensor(row) for row in ids]
    batches = [PackedBatch.from_sequences(sequences[at : at + BATCH]) for at in range(0, len(sequences), BATCH)]
    models = {
        "float32": model,
        "bfloat16": copy.deepcopy(model).bfloat16(),
        "int8": quantise_int8(copy.deepcopy(model)),
    }
    for each in models.values():
        join_projections(each)
    found = {name: vectors(each, batches) for name, each in models.items()}
    runs: Runs = {name: lambda each=each: vectors(each, batches) for name, each in models.items()}  # type: ignore[misc]
    times, failures = in_turns(runs, "cpu", 0.0 if options.tiny else options.seconds, cold=False)
    if failures:
        raise RuntimeError(f"{failures}")
    exact, first = found["float32"], times["float32"].wall_s
    tokens = sum(batch.total_tokens for batch in batches)
    print(f"{len(texts)} texts, {tokens} tokens; auto: {auto_dtype(torch.device('cpu'))}")
    for name, vector in found.items():
        cosine = F.cosine_similarity(vector.double(), exact.double())
        greatest = (vector - exact).abs().max() / exact.abs().max()
        ratio = sorted(one / other for one, other in zip(first, times[name].wall_s, strict=True))[len(first) // 2]
        print(
            f"{name:10} cosine least {cosine.min():.5f} mean {cosine.mean():.5f}  "
            f"greatest difference {greatest:.4f}  {ratio:.2f}x as fast"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

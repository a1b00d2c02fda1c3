"""Zero-shot classification beside transformers' pipeline, on the demo's 96 documents and five labels, on a CPU.

python -m bench.tools.zero_shot                # writes bench/results/zero-shot-<date>.json
python -m bench.tools.zero_shot --model DIR    # with a checkpoint's weights, instead of random ones

Providers run in turns; `ratio` is the median over the rounds of a provider's time over ours.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import pipeline

from erniem_fast import ErnieMForSequenceClassification, ErnieMTokenizer, reference, zero_shot_classification
from erniem_fast.cli.verify import sample

from .real_text import Rows, Runs, parser, random_model, timed, write

LABELS = ["politics", "economy", "sport", "travel", "science"]
NLI = ("entailment", "neutral", "contradiction")
TOLERANCE = 1e-5
TASK = "zero-shot-classification"
OURS = "zero_shot_classification"


def load(path: str | None, layers: int, tiny: bool) -> tuple[ErnieMForSequenceClassification, ErnieMTokenizer]:
    """A checkpoint, or a model of ernie-m-base's width with random weights."""
    if path is not None:
        return ErnieMForSequenceClassification.from_pretrained(path).eval(), ErnieMTokenizer.from_pretrained(path)
    labels = {name: index for index, name in enumerate(NLI)}
    return random_model(ErnieMForSequenceClassification, layers, tiny, id2label=dict(enumerate(NLI)), label2id=labels)


def providers(model: Any, tokenizer: ErnieMTokenizer, texts: list[str]) -> Runs:
    """Ways to classify the texts, whose scores are all the same."""
    padded = reference.ErnieMForSequenceClassification(model.config).eval()
    padded.load_state_dict(model.state_dict())
    fast, plain = (pipeline(TASK, one, tokenizer=tokenizer, device="cpu") for one in (model, padded))
    runs: Runs = {
        OURS: partial(zero_shot_classification(model, tokenizer), texts, LABELS, progress=False),
        "pipeline": partial(fast, texts, LABELS),
        "pipeline, batch_size=8": partial(fast, texts, LABELS, batch_size=8),
        "pipeline, batch_size=8, padded model": partial(plain, texts, LABELS, batch_size=8),
    }
    expected = scores(runs[OURS]())
    for name, run in runs.items():
        difference = float((scores(run()) - expected).abs().max())
        if difference > TOLERANCE:
            raise ValueError(f"scores of {name} differ by {difference} from ours, more than {TOLERANCE}")
    return runs


def scores(results: Any) -> Tensor:
    """Scores of each text, in the labels' alphabetical order."""
    by_label = [sorted(zip(one["labels"], one["scores"], strict=True)) for one in results]
    return torch.tensor([[score for _, score in one] for one in by_label])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    made = parser(__doc__, seconds=120.0)
    made.add_argument("--layers", type=int, default=2, help="layers of the random model")
    options = made.parse_args(argv)
    torch.set_num_threads(options.threads)
    texts = [text for _, text in sample()][: 4 if options.tiny else None]

    def tables() -> Iterator[tuple[str, Rows]]:
        model, tokenizer = load(options.model, options.layers, options.tiny)
        runs = providers(model, tokenizer, texts)
        config = model.config
        facts = {"layers": config.num_hidden_layers, "hidden_size": config.hidden_size}
        facts |= {"texts": len(texts), "labels": len(LABELS)}
        yield "zero-shot", [facts | row for row in timed(runs, options, {})]

    write(options, "zero-shot", tables())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

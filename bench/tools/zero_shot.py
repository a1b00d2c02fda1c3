"""Zero-shot classification beside transformers' pipeline, on the demo's 96 documents and five labels, on a CPU.

python -m bench.tools.zero_shot                # writes bench/results/zero-shot-<date>.json
python -m bench.tools.zero_shot --model DIR    # with a checkpoint's weights, instead of random ones

Providers run in turns; `ratio` is the median over the rounds of a provider's time over ours.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from transformers import pipeline

from bench.engine.environment import RESULTS, ROOT, describe, now, others_seconds
from bench.engine.results import Measured, ResultFile
from bench.engine.shapes import Sizes
from bench.engine.timing import in_turns
from erniem_fast import ErnieMForSequenceClassification, ErnieMTokenizer, reference, zero_shot_classification
from erniem_fast.cli.verify import sample

LABELS = ["politics", "economy", "sport", "travel", "science"]
NLI = ("entailment", "neutral", "contradiction")
TOKENIZER = ROOT / "erniem_fast" / "demo_data" / "tokenizer"
TOLERANCE = 1e-5
TASK = "zero-shot-classification"
OURS = "zero_shot_classification"


def load(path: str | None, layers: int, tiny: bool) -> tuple[ErnieMForSequenceClassification, ErnieMTokenizer]:
    """A checkpoint, or a model of ernie-m-base's width with random weights."""
    if path is not None:
        return ErnieMForSequenceClassification.from_pretrained(path).eval(), ErnieMTokenizer.from_pretrained(path)
    tokenizer = ErnieMTokenizer(TOKENIZER / "sentencepiece.bpe.model", TOKENIZER / "vocab.txt")
    sizes: dict[str, int] = {"hidden_size": 32, "num_heads": 4, "intermediate_size": 64} if tiny else {}
    config = Sizes(vocab_size=len(tokenizer), num_layers=layers, **sizes).config()
    config.id2label, config.label2id = dict(enumerate(NLI)), {name: index for index, name in enumerate(NLI)}
    torch.manual_seed(0)
    return ErnieMForSequenceClassification(config).eval(), tokenizer


def providers(model: Any, tokenizer: ErnieMTokenizer, texts: list[str]) -> dict[str, Callable[[], Any]]:
    """Ways to classify the texts, whose scores are all the same."""
    padded = reference.ErnieMForSequenceClassification(model.config).eval()
    padded.load_state_dict(model.state_dict())
    fast, plain = (pipeline(TASK, one, tokenizer=tokenizer, device="cpu") for one in (model, padded))
    runs: dict[str, Callable[[], Any]] = {
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a checkpoint")
    parser.add_argument("--layers", type=int, default=2, help="layers of the random model")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--seconds", type=float, default=120.0, help="seconds of timing")
    parser.add_argument("--tiny", action="store_true", help="dry run on a tiny model")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    model, tokenizer = load(options.model, options.layers, options.tiny)
    texts = [text for _, text in sample()][: 4 if options.tiny else None]
    about = describe("cpu") | {"suite": "zero-shot", "tiny": options.tiny, "checkpoint": options.model}
    file = ResultFile.new(options.output / f"zero-shot-{about['date'][:10]}.json", about)
    begun, others = monotonic(), others_seconds()
    run: dict[str, Any] = {"date": now()}
    file.begin(run)
    times, failures = in_turns(
        providers(model, tokenizer, texts), "cpu", 0.0 if options.tiny else options.seconds, cold=False
    )
    if failures:
        raise RuntimeError(f"{failures}")
    ours = times[OURS].wall_s
    rows: list[dict[str, Any]] = []
    for name, taken in times.items():
        ratio = median(other / one for one, other in zip(ours, taken.wall_s, strict=True))
        rows.append({
            "operation": "zero-shot", "provider": name, "texts": len(texts), "labels": len(LABELS),
            "layers": model.config.num_hidden_layers, "hidden_size": model.config.hidden_size,
            "time_s": median(taken.wall_s), "ratio": ratio, "rounds": len(ours),
        })  # fmt: skip
        print(f"{name:40}{rows[-1]['time_s']:9.3f} s{ratio:8.2f}x")
    file.add("zero-shot", Measured(rows))
    run["seconds"] = round(monotonic() - begun, 1)
    if others is not None:
        run["others_busy_cores"] = round(((others_seconds() or others) - others) / run["seconds"], 2)
    file.write()
    print(file.path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Time of the tokenizer against SentencePiece alone and against XLM-R's Rust tokenizer of the same pieces.

Short lines are drawn, with repetition, from the Tatoeba pairs in `tests/embeddings`, documents from those of the demo;
or the texts are a file's lines.
All run on one thread, in turns; ratios are medians over the rounds. Writes `bench/results/tokenizer-<date>.json`.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from erniem_fast import ErnieMTokenizer

from ..engine.environment import RESULTS, ROOT, describe, others_seconds
from ..engine.results import dump, write_whole
from ..serving.setup import rust_tokenizer

DATA = ROOT / "tests" / "golden" / "tokenizer"
MODEL = DATA / "sentencepiece.bpe.model"
LINES = 10_000
GOALS = {"ids": 2.0, "offsets": 4.0}
"""Most time, by that of SentencePiece."""


def drawn(n_lines: int) -> dict[str, list[str]]:
    """Short lines, and a tenth as many documents of at least 300 characters."""
    random.seed(0)
    pairs = (ROOT / "tests" / "embeddings" / "pairs.tsv").read_text(encoding="utf-8").splitlines()
    short = [text for pair in pairs for text in pair.split("\t")[1:]]
    texts = (ROOT / "erniem_fast" / "demo_data" / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [text for text in (json.loads(line)["text"] for line in texts) if len(text) >= 300]
    return {
        "short lines": random.choices(short, k=n_lines),
        "documents": random.choices(documents, k=max(1, n_lines // 10)),
    }


def measure(texts: list[str], rounds: int) -> dict[str, Any]:
    """Seconds of each way to tokenize the texts, and ratios to SentencePiece's and to the Rust tokenizer's."""
    ours = ErnieMTokenizer(MODEL, DATA / "vocab.txt", model_max_length=10**9)
    rust, processor = rust_tokenizer(ours.sp_model), ours.sp_model
    ways: dict[str, Callable[[], object]] = {
        "sentencepiece, a batch": lambda: processor.encode(texts, num_threads=1),
        "sentencepiece, one by one": lambda: [processor.encode(text) for text in texts],
        "ids": lambda: ours(texts),
        "offsets": lambda: ours(texts, return_offsets_mapping=True),
        "xlm-r in rust": lambda: rust(texts),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):  # the first one warms up
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)

    def ratio(name: str, to: str) -> float:
        return median(a / b for a, b in zip(seconds[name][1:], seconds[to][1:], strict=True))

    return {
        "texts": len(texts),
        "characters": sum(map(len, texts)),
        "tokens": sum(map(len, ours(texts)["input_ids"])),
        "seconds": {name: median(values[1:]) for name, values in seconds.items()},
        "to_sentencepiece": {name: ratio(name, "sentencepiece, a batch") for name in ways},
        "to_sentencepiece_one_by_one": {name: ratio(name, "sentencepiece, one by one") for name in ways},
        "rust_to_ids": ratio("xlm-r in rust", "ids"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=LINES, help="number of short lines")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--texts", type=Path, help="time the lines of this file instead; writes nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result")
    options = parser.parse_args(argv)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    start, others = time.perf_counter(), others_seconds() or 0.0
    sets = drawn(options.lines) if options.texts is None else {
        "lines of the file": options.texts.read_text(encoding="utf-8").splitlines()
    }  # fmt: skip
    about = describe("cpu") | {"suite": "tokenizer", "tiny": options.lines < LINES}
    content = about | {"rounds": options.rounds, "rows": {name: measure(t, options.rounds) for name, t in sets.items()}}
    content["others_busy_cores"] = ((others_seconds() or others) - others) / (time.perf_counter() - start)
    for name, row in content["rows"].items():
        print(f"{name}: {row['texts']} texts, {row['tokens']} tokens")
        for way, goal in GOALS.items():
            batch, alone = row["to_sentencepiece"][way], row["to_sentencepiece_one_by_one"][way]
            print(f"  {way}: {batch:.2f}x SentencePiece's batch, {alone:.2f}x one by one (goal: at most {goal:g}x)")
        print(f"  XLM-R in Rust takes {row['rust_to_ids']:.2f}x our time (goal: at least 2x)")
    print(f"other processes kept {content['others_busy_cores']:.2f} cores busy")
    if options.texts is None:
        path = options.output / f"tokenizer-{about['date'][:10]}.json"
        options.output.mkdir(parents=True, exist_ok=True)
        write_whole(path, dump(content))
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

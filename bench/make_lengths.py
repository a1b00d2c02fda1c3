"""Makes `data/xquad_lengths.json`: token lengths of XQuAD texts in the order in which they arrive.

    python -m bench.make_lengths --xquad FOLDER    # the folder holds xquad.en.json and the other languages

Only lengths are kept: no text, and the time of a forward does not depend on which ids stand in it.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from erniem_fast import ErnieMTokenizer

ROOT = Path(__file__).parent.parent
LANGUAGES = ("en", "zh", "ar", "hi")
CONTEXTS_PER_LANGUAGE = 64
QUESTIONS_PER_CONTEXT = 3
MAX_TOKENS = 512
SEED = 20


def sample_texts(paragraphs: list[dict[str, Any]], rng: random.Random) -> list[str]:
    """Contexts of one language, each followed by three of its questions."""
    enough = [paragraph for paragraph in paragraphs if len(paragraph["qas"]) >= QUESTIONS_PER_CONTEXT]
    texts: list[str] = []
    for paragraph in rng.sample(enough, CONTEXTS_PER_LANGUAGE):
        questions = rng.sample(paragraph["qas"], QUESTIONS_PER_CONTEXT)
        texts += [paragraph["context"], *(question["question"] for question in questions)]
    return texts


def make(xquad: Path, tokenizer_folder: Path) -> dict[str, Any]:
    """The content of the file."""
    tokenizer = ErnieMTokenizer(str(tokenizer_folder / "sentencepiece.bpe.model"), str(tokenizer_folder / "vocab.txt"))
    rng = random.Random(SEED)
    texts: list[str] = []
    for language in LANGUAGES:
        articles = json.loads((xquad / f"xquad.{language}.json").read_text(encoding="utf-8"))["data"]
        texts += sample_texts([paragraph for article in articles for paragraph in article["paragraphs"]], rng)
    rng.shuffle(texts)
    ids = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return {
        "source": "XQuAD, https://github.com/google-deepmind/xquad, CC BY-SA 4.0",
        "languages": LANGUAGES,
        "contexts_per_language": CONTEXTS_PER_LANGUAGE,
        "questions_per_context": QUESTIONS_PER_CONTEXT,
        "max_tokens": MAX_TOKENS,
        "seed": SEED,
        "tokenizer": "tests/golden/tokenizer",
        "lengths": [len(row) for row in ids],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xquad", type=Path, required=True, help="folder of xquad.<language>.json")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "tests/golden/tokenizer")
    parser.add_argument("--output", type=Path, default=ROOT / "bench/data/xquad_lengths.json")
    arguments = parser.parse_args()
    content = make(arguments.xquad, arguments.tokenizer)
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    arguments.output.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

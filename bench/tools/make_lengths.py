"""Make the files of `bench/data`: token lengths of texts, and of pairs of sentences, in order of arrival.

python -m bench.tools.make_lengths --xquad FOLDER --tatoeba FOLDER

The first folder holds xquad.en.json and the other languages, the second LASER's tatoeba.deu-eng.deu and its kin.
Only lengths are kept: the time of a forward does not depend on the ids.
"""

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any

from bench.engine.environment import ROOT
from bench.engine.shapes import DATA
from erniem_fast import ErnieMTokenizer

LANGUAGES = ("en", "zh", "ar", "hi")
CONTEXTS_PER_LANGUAGE, QUESTIONS_PER_CONTEXT, PAIRS_PER_LANGUAGE = 64, 3, 256
SENTENCES = 512
MAX_TOKENS = 512
TATOEBA = "Tatoeba as in facebookresearch/LASER, data/tatoeba/v1, CC BY 2.0 FR"
MAX_SENTENCE_TOKENS = 36
"""Special tokens included. XQuAD's sentences are longer than XNLI's premises: the longest are left out."""
SEED = 20
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？।؟])\s*")
Paragraphs = list[dict[str, Any]]


def sample_texts(paragraphs: Paragraphs, rng: random.Random) -> list[str]:
    """Contexts of one language, each followed by three of its questions."""
    enough = [paragraph for paragraph in paragraphs if len(paragraph["qas"]) >= QUESTIONS_PER_CONTEXT]
    texts: list[str] = []
    for paragraph in rng.sample(enough, CONTEXTS_PER_LANGUAGE):
        questions = rng.sample(paragraph["qas"], QUESTIONS_PER_CONTEXT)
        texts += [paragraph["context"], *(question["question"] for question in questions)]
    return texts


def sample_pairs(paragraphs: Paragraphs, tokenizer: ErnieMTokenizer, rng: random.Random) -> list[tuple[str, str]]:
    """Sentences of one language's contexts, each with a question about its context."""
    pairs = [
        (sentence, rng.choice(paragraph["qas"])["question"])
        for paragraph in paragraphs
        for sentence in filter(str.strip, SENTENCE_END.split(paragraph["context"]))
    ]
    rows = tokenizer([sentence for sentence, _ in pairs])["input_ids"]
    short = [pair for pair, row in zip(pairs, rows, strict=True) if len(row) <= MAX_SENTENCE_TOKENS]
    return rng.sample(short, PAIRS_PER_LANGUAGE)


def read_paragraphs(xquad: Path, language: str) -> Paragraphs:
    """Contexts with their questions."""
    articles = json.loads((xquad / f"xquad.{language}.json").read_text(encoding="utf-8"))["data"]
    return [paragraph for article in articles for paragraph in article["paragraphs"]]


def read_sentences(tatoeba: Path) -> list[str]:
    """Distinct sentences of all languages, sorted."""
    files = tatoeba.glob("tatoeba.*-eng.*")
    return sorted({line for path in files for line in path.read_text(encoding="utf-8").splitlines() if line.strip()})


def make(xquad: Path, tokenizer_folder: Path) -> dict[str, Any]:
    """Content of `xquad_lengths.json`."""
    rng = random.Random(SEED)
    texts = [text for language in LANGUAGES for text in sample_texts(read_paragraphs(xquad, language), rng)]
    rng.shuffle(texts)
    ids = _tokenizer(tokenizer_folder)(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return _about({"contexts_per_language": CONTEXTS_PER_LANGUAGE, "questions_per_context": QUESTIONS_PER_CONTEXT}, ids)


def make_pairs(xquad: Path, tokenizer_folder: Path) -> dict[str, Any]:
    """Content of `pair_lengths.json`."""
    rng, tokenizer = random.Random(SEED), _tokenizer(tokenizer_folder)
    pairs = [pair for language in LANGUAGES for pair in sample_pairs(read_paragraphs(xquad, language), tokenizer, rng)]
    rng.shuffle(pairs)
    ids = tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return _about({"pairs_per_language": PAIRS_PER_LANGUAGE, "max_sentence_tokens": MAX_SENTENCE_TOKENS}, ids)


def make_served(xquad: Path, tatoeba: Path, tokenizer_folder: Path, contexts: int, questions: int) -> dict[str, Any]:
    """Content of `mix_lengths.json` and `short_lengths.json`: texts as a service meets them.

    Args:
        contexts, questions: how many of each language.
    """
    rng = random.Random(SEED)
    texts = rng.sample(read_sentences(tatoeba), SENTENCES)
    for language in LANGUAGES:
        paragraphs = read_paragraphs(xquad, language)
        asked = [one["question"] for paragraph in paragraphs for one in paragraph["qas"]]
        texts += rng.sample([paragraph["context"] for paragraph in paragraphs], contexts) + rng.sample(asked, questions)
    rng.shuffle(texts)
    ids = _tokenizer(tokenizer_folder)(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    counts = {"sentences": SENTENCES, "contexts_per_language": contexts, "questions_per_language": questions}
    about = _about(counts, ids)
    return about | {"source": f"{about['source']}; {TATOEBA}"}


def _tokenizer(folder: Path) -> ErnieMTokenizer:
    return ErnieMTokenizer(str(folder / "sentencepiece.bpe.model"), str(folder / "vocab.txt"))


def _about(counts: dict[str, int], ids: list[list[int]]) -> dict[str, Any]:
    source = {"source": "XQuAD, https://github.com/google-deepmind/xquad, CC BY-SA 4.0", "languages": LANGUAGES}
    made = {"max_tokens": MAX_TOKENS, "seed": SEED, "tokenizer": "tests/golden/tokenizer"}
    return {**source, **counts, **made, "lengths": [len(row) for row in ids]}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xquad", type=Path, required=True, help="folder of xquad.<language>.json")
    parser.add_argument("--tatoeba", type=Path, required=True, help="folder of tatoeba.<language>-eng.<language>")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "tests/golden/tokenizer")
    parser.add_argument("--output", type=Path, default=DATA, help="folder of the files")
    arguments = parser.parse_args()
    xquad, tatoeba, tokenizer = arguments.xquad, arguments.tatoeba, arguments.tokenizer
    contents = {
        "xquad_lengths": make(xquad, tokenizer),
        "pair_lengths": make_pairs(xquad, tokenizer),
        "mix_lengths": make_served(xquad, tatoeba, tokenizer, contexts=32, questions=96),
        "short_lengths": make_served(xquad, tatoeba, tokenizer, contexts=0, questions=128),
    }
    for name, content in contents.items():
        lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
        (arguments.output / f"{name}.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

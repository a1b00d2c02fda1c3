"""Pre-training on Tatoeba's pairs: MMLM alone against MMLM + TLM + CAMLM, for the same number of tokens.

python -m bench.training.pretraining --texts DIR    # writes bench/results/training-pretraining-<date>.json

DIR is the folder data/tatoeba/v1 of facebookresearch/LASER (CC BY 2.0 FR): line i of `tatoeba.deu-eng.deu` translates
line i of `tatoeba.deu-eng.eng`. Both models begin with the same random weights, and read the same number of tokens of
the same sentences. They are told apart by retrieval: each held-out sentence's vector, a mean over its tokens' states
behind a layer, must be closest, by cosine, to that of its translation among those of its language. English sentences
that are held out of one language are in none's training.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from erniem_fast import ErnieMConfig, ErnieMModel, ErnieMTokenizer
from erniem_fast.training.mixing import Mixture
from erniem_fast.training.objectives import ErnieMForPreTraining
from erniem_fast.training.pretrain import pretrain
from erniem_fast.training.pretraining_settings import Corpora, PretrainingSettings, make_parts

from .folders import golden_tokenizer, log_of
from .results import TrainingRun, command_line, parser

LANGUAGES = ("deu", "spa")
SIZES: dict[str, Any] = {
    "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
MIXTURES: dict[str, dict[str, float]] = {
    "MMLM": {"mmlm": 1.0},
    "MMLM + TLM + CAMLM": {"mmlm": 1.0, "tlm": 1.0, "camlm": 1.0},
}
HELD_OUT = 100
"""Pairs of each language that are held out."""
Pair = tuple[str, str]


def read_pairs(folder: Path, language: str) -> list[Pair]:
    """The pairs of a language with English, each English sentence once, in an order drawn once for all."""
    sides = [(folder / f"tatoeba.{language}-eng.{side}").read_text(encoding="utf-8") for side in (language, "eng")]
    lines = [[line.strip() for line in side.splitlines()] for side in sides]
    pairs = {english: (foreign, english) for foreign, english in zip(*lines, strict=True) if foreign and english}
    return random.Random(0).sample(list(pairs.values()), len(pairs))


def split(folder: Path, most: int) -> tuple[list[Pair], dict[str, list[Pair]]]:
    """Pairs for training, and those of each language that are held out."""
    pairs = {language: read_pairs(folder, language) for language in LANGUAGES}
    held_out = {language: found[:most] for language, found in pairs.items()}
    unseen = {sentence for found in held_out.values() for pair in found for sentence in pair}
    training = [pair for found in pairs.values() for pair in found[most:] if not unseen.intersection(pair)]
    return training, held_out


def write_corpora(folder: Path, pairs: Sequence[Pair]) -> Corpora:
    """The pairs as TSV, and their sentences as plain text."""
    parallel, monolingual = folder / "pairs.tsv", folder / "texts.txt"
    parallel.write_text("".join("\t".join(pair) + "\n" for pair in pairs), encoding="utf-8")
    monolingual.write_text("".join(f"{text}\n" for pair in pairs for text in pair), encoding="utf-8")
    return Corpora([str(parallel)], [str(monolingual)])


def steps_for(tokens: int, tokenizer: ErnieMTokenizer, settings: PretrainingSettings, corpora: Corpora) -> int:
    """Batches that hold so many tokens."""
    parts = make_parts(tokenizer, settings, corpora, ErnieMConfig())
    counts = (batch.tokens for batch in Mixture(parts, tokenizer, batch_tokens=settings.batch_tokens))
    return next(step for step, total in enumerate(accumulate(counts), 1) if total >= tokens)


@torch.inference_mode()
def vectors(model: Any, tokenizer: ErnieMTokenizer, texts: Sequence[str]) -> list[Tensor]:
    """Mean of each text's hidden states behind each layer, of length 1: (len(texts), hidden_size) a layer."""
    inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
    mask = inputs["attention_mask"]
    states = model.eval()(inputs["input_ids"], attention_mask=mask, output_hidden_states=True).hidden_states[1:]
    means = [(layer * mask[..., None]).sum(1) / mask.sum(1, keepdim=True) for layer in states]
    return [torch.nn.functional.normalize(mean, dim=-1) for mean in means]


def retrieval(model: Any, tokenizer: ErnieMTokenizer, held_out: dict[str, list[Pair]]) -> list[tuple[float, float]]:
    """Shares of held-out sentences whose translation is found, for each layer.

    Returns:
        The share of those in other languages, and that of the English ones.
    """
    layers = model.config.num_hidden_layers
    found = torch.zeros(layers, 2)
    for pairs in held_out.values():
        foreign, english = (vectors(model, tokenizer, side) for side in zip(*pairs, strict=True))
        right = torch.arange(len(pairs))
        for layer in range(layers):
            scores = foreign[layer] @ english[layer].T
            for direction in (0, 1):
                found[layer, direction] += (scores.argmax(1 - direction) == right).float().mean() / len(held_out)
    return [(float(into), float(out_of)) for into, out_of in found]


def settings_of(weights: dict[str, float], steps: int, tiny: bool) -> PretrainingSettings:
    """Settings that both models share, but for the objectives and the steps."""
    return PretrainingSettings(
        objectives=weights,
        steps=steps,
        batch_tokens=256 if tiny else 1024,
        learning_rate=2e-3,
        mask_probability=0.3,
        max_length=512,
        log_every=1 if tiny else 50,
        dtype="float32",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    made = parser(__doc__, "the folder of Tatoeba's pairs, see above")
    made.add_argument("--tokens", type=float, default=8e6, help="tokens that each model reads")
    options = made.parse_args(argv)
    torch.set_num_threads(options.threads)
    tokenizer = golden_tokenizer()
    config = ErnieMConfig(vocab_size=len(tokenizer), **SIZES | ({"num_hidden_layers": 1} if options.tiny else {}))
    training, held_out = split(options.texts, 10 if options.tiny else HELD_OUT)
    command = command_line(__spec__.name, argv)
    with TemporaryDirectory() as work, TrainingRun("pretraining", command, options) as run:
        written = write_corpora(Path(work), training)
        for name, weights in MIXTURES.items():
            corpora = replace(written, parallel=()) if set(weights) == {"mmlm"} else written
            settings = settings_of(weights, 1, options.tiny)
            steps = steps_for(512 if options.tiny else int(options.tokens), tokenizer, settings, corpora)
            settings = settings_of(weights, steps, options.tiny)
            torch.manual_seed(0)
            model = ErnieMForPreTraining(config)
            out = Path(work) / name
            outcome = pretrain(model, tokenizer, str(out), settings, corpora, device="cpu")
            encoder = ErnieMModel.from_pretrained(out, add_pooling_layer=False)
            run.add_figure(f"{name}: tokens", outcome.tokens)
            for layer, (into, out_of) in enumerate(retrieval(encoder, tokenizer, held_out), 1):
                run.add_figure(f"{name}: English sentence found, layer {layer}", into, "%")
                run.add_figure(f"{name}: translation of an English sentence found, layer {layer}", out_of, "%")
            lines = log_of(out)
            for objective in weights:
                losses = [(line["step"], line[f"{objective}_loss"]) for line in lines if f"{objective}_loss" in line]
                run.add_curve(f"loss of {objective.upper()}", losses, name)
        run.add_figure("pairs for training", len(training))
        run.add_figure("found by chance", 1 / (10 if options.tiny else HELD_OUT), "%")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Small ErnieM models with random weights learn 64 questions of XQuAD by heart, to the character, on a CPU.

python -m bench.training.xquad_overfit --texts DIR    # writes bench/results/training-xquad-<date>.json

DIR is the repository google-deepmind/xquad (CC BY-SA 4.0), `xquad.en.json` and so on. There is one model for each of
three languages, in Latin, Han and Arabic script, trained by `fine_tune` on the first 64 questions of its file in
SQuAD's form. The saved folder is then asked the same questions through `Encoder.answer`, which is what the exact
spans are of: start and end of every answer must be the characters that the file names.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import torch

from erniem_fast import Encoder
from erniem_fast.training.finetune import fine_tune
from erniem_fast.training.tasks.base import Asked
from erniem_fast.training.tasks.question_answering import QuestionAnswering, flatten

from .folders import golden_tokenizer, log_of, save_random
from .results import TrainingRun, command_line, parser

LANGUAGES = {"en": "Latin", "zh": "Han", "ar": "Arabic"}
"""Script of each language."""
QUESTIONS = 64
SIZES: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512,
    "initializer_range": 0.08,
}  # fmt: skip
"""A range of 0.02 is for a width of 768: with it attention begins to tell questions apart several times later."""
DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
"""Learning by heart is what dropout is against."""
MAX_ANSWER_LEN = 32
"""Tokens; the longest of the answers has 22."""
SETTINGS: dict[str, Any] = {
    "epochs": 40.0, "learning_rate": 1e-3, "batch_tokens": 1536, "layer_decay": 1.0, "weight_decay": 0.0,
    "eval_steps": 40, "patience": 8,
}  # fmt: skip


def head_of(document: dict[str, Any], questions: int) -> dict[str, Any]:
    """The first questions of a document in SQuAD's form, in the same form."""
    data: list[dict[str, Any]] = []
    left = questions
    for article in document["data"]:
        paragraphs = []
        for paragraph in article["paragraphs"]:
            kept = paragraph["qas"][:left]
            left -= len(kept)
            if kept:
                paragraphs.append(paragraph | {"qas": kept})
        if paragraphs:
            data.append(article | {"paragraphs": paragraphs})
    return {"version": document["version"], "data": data}


def exact(folder: Path, questions: Sequence[dict[str, Any]]) -> float:
    """Share of questions that a saved model answers with the very characters, and the very text."""
    encoder = Encoder.from_pretrained(folder, dtype="float32", device="cpu")
    answers = encoder.answer(questions, max_answer_len=MAX_ANSWER_LEN, progress=False)
    right = 0
    for question, answer in zip(questions, answers, strict=True):
        (expected,) = question["answers"]
        start, end = expected["answer_start"], expected["answer_start"] + len(expected["text"])
        right += (answer["start"], answer["end"], answer["answer"]) == (start, end, expected["text"])
    return right / len(questions)


def learn(run: TrainingRun, document: dict[str, Any], language: str, folder: Path, tiny: bool) -> None:
    """Train a model of a language, and add its figures and curves."""
    kept = head_of(document, 4 if tiny else QUESTIONS)
    data = folder / "questions.json"
    data.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
    sizes = SIZES | DROPOUT | ({"num_hidden_layers": 1} if tiny else {})
    save_random(folder / "random", golden_tokenizer(), **sizes)
    begun = monotonic()
    figures = fine_tune(
        Asked(QuestionAnswering, {"max_answer_len": MAX_ANSWER_LEN}), str(data), str(data),
        model=str(folder / "random"), out=str(folder / "answers"), dtype="float32", device="cpu",
        settings=SETTINGS | ({"epochs": 2.0, "eval_steps": 1} if tiny else {}),
    )  # fmt: skip
    seconds = monotonic() - begun
    name = f"{language} ({LANGUAGES[language]} script)"
    questions = list(flatten(kept))
    bar = 0.0 if tiny else 1.0
    run.add_figure(f"{name}: exact match", figures["exact_match"], "%", at_least=bar)
    run.add_figure(f"{name}: exact spans, asked of the saved folder", exact(folder / "answers", questions), "%",
                   at_least=bar)  # fmt: skip
    run.add_figure(f"{name}: questions", len(questions))
    run.add_figure(f"{name}: training", seconds, "s")
    history = log_of(folder / "answers")
    for entry in history:
        entry.pop("eval_loss", None)  # of the same questions: nothing is held out
    run.add_curves(history, language, ("loss", "exact_span"))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    options = parser(__doc__, "the folder of XQuAD's files, see above").parse_args(argv)
    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as work, TrainingRun("xquad", command_line(__spec__.name, argv), options) as run:
        for language in LANGUAGES:
            document = json.loads((options.texts / f"xquad.{language}.json").read_text(encoding="utf-8"))
            folder = Path(work) / language
            folder.mkdir()
            learn(run, document, language, folder, options.tiny)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

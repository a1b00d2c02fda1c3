"""A student with half the layers learns from a model that tells 20 languages apart, through `fine_tune`, on a CPU.

python -m bench.training.distilled_languages --texts DIR            # writes training-distilled-languages-<date>.json
python -m bench.training.distilled_languages --texts DIR --tiny     # a dry run of some steps

DIR, lines and teacher are those of `bench.training.languages`, whose run comes first. The student begins with every
second layer of the teacher. For comparison another one, from the same layers, learns from the labels alone.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from erniem_fast import ErnieMForSequenceClassification
from erniem_fast.training.distilling import DistillationRecipe
from erniem_fast.training.finetune import fine_tune
from erniem_fast.training.tasks.base import Asked
from erniem_fast.training.tasks.classify import Classification

from .folders import log_of
from .languages import SETTINGS, learn, parsed
from .results import TrainingRun, command_line

LAYERS = 2
STUDENT: dict[str, Any] = SETTINGS | {"epochs": 2.0, "learning_rate": 5e-4}
MODELS = {"distilled": 0.7, "from labels alone": 0.0}
"""Students, by the teacher's share of the loss."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    options = parsed(__doc__, argv)
    run = TrainingRun("distilled-languages", command_line(__spec__.name, argv), options)
    with tempfile.TemporaryDirectory() as name, run:
        folder = Path(name)
        taught = learn(options, folder)
        teacher = str(folder / "languages")
        run.add_figure("accuracy of the teacher, 4 layers", taught["accuracy"], "%")
        run.add_curves(log_of(folder / "languages"), "teacher", ("loss", "accuracy"))
        for model, weight in MODELS.items():
            out = folder / model
            begun = monotonic()
            figures = fine_tune(
                Asked(Classification, {"label_column": "language"}),
                str(folder / "train.jsonl"), str(folder / "held-out.jsonl"), model=teacher, out=str(out),
                settings=STUDENT | ({"epochs": 1.0} if options.tiny else {}), dtype=options.dtype, device="cpu",
                recipe=DistillationRecipe(
                    teacher, student_layers=LAYERS, weight=weight, layer_map="1:2,2:4" if weight else None
                ),
            )  # fmt: skip
            seconds = monotonic() - begun
            layers = ErnieMForSequenceClassification.from_pretrained(out).config.num_hidden_layers
            run.add_figure(f"accuracy of the student {model}, {layers} layers", figures["accuracy"], "%")
            share = figures["accuracy"] / max(taught["accuracy"], 1e-9)
            bar = 0.98 if weight else None
            run.add_figure(f"the same, of the teacher's accuracy, {model}", share, "%", at_least=bar)
            run.add_figure(f"time to train the student {model}", seconds, "s")
            run.add_curves(log_of(out), model, ("loss", "accuracy"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

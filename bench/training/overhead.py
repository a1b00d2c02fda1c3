"""Share of a training step that is neither forward, backward nor optimizer: loading, collating, moving, Trainer itself.

python -m bench.training.overhead           # writes training-overhead-<date>.json
python -m bench.training.overhead --tiny    # a dry run on a tiny model

ErnieM of base size, random weights, learns to classify the demo's texts through `PackedTrainer`, on a CPU. Clipping of
gradients is counted as the optimizer's.
"""

import json
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from transformers import TrainingArguments

from bench.engine.environment import ROOT
from bench.engine.shapes import BASE, TINY
from erniem_fast import ErnieMForSequenceClassification, ErnieMTokenizer
from erniem_fast.training import PackedCollator
from erniem_fast.training.trainer import PackedTrainer

from .results import TrainingRun, command_line, parser

DATA = ROOT / "erniem_fast" / "demo_data"
STEPS = 6
"""Steps that are measured; one more goes before."""
BATCH_TOKENS = 4096


class TimedTrainer(PackedTrainer):
    """Trainer that adds up seconds.

    Attributes:
        inside: of forward, backward and optimizer since the first step.
        begun: when the first step was over.
    """

    inside = 0.0
    begun = 0.0

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            begun = perf_counter()
            result = function(*args, **options)
            self.inside += perf_counter() - begun
            return result

        return run

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        """The loss; its time is counted."""
        return self._timed(super().compute_loss)(*args, **options)

    def watch(self) -> None:
        """Count the time of backward, of clipping and of the optimizer."""
        self.accelerator.backward = self._timed(self.accelerator.backward)
        self.accelerator.clip_grad_norm_ = self._timed(self.accelerator.clip_grad_norm_)
        optimizer = self.create_optimizer()
        for name in ("step", "zero_grad"):
            setattr(optimizer, name, self._timed(getattr(optimizer, name)))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; the clock starts behind the first step."""
        super().log(logs, start_time)
        if self.state.global_step == 1:
            self.begun, self.inside = perf_counter(), 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    options = parser(__doc__).parse_args(argv)
    torch.set_num_threads(options.threads)
    tokenizer = ErnieMTokenizer.from_pretrained(DATA / "tokenizer")
    texts = [json.loads(line)["text"] for line in (DATA / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = tokenizer(texts, truncation=True, max_length=512)["input_ids"]
    samples = [{"input_ids": row, "labels": index % 2} for index, row in enumerate(rows)] * 20
    config = (TINY if options.tiny else BASE).config()
    config.vocab_size = max(config.vocab_size, len(tokenizer))
    model = ErnieMForSequenceClassification(config)
    with TemporaryDirectory() as work, TrainingRun("overhead", command_line(__spec__.name, argv), options) as run:
        arguments = TrainingArguments(
            work, max_steps=STEPS + 1, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
            disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = TimedTrainer(
            model, arguments, train_dataset=samples, batch_tokens=256 if options.tiny else BATCH_TOKENS,
            data_collator=PackedCollator.for_model(model),
        )  # fmt: skip
        trainer.watch()
        trainer.train()
        wall = perf_counter() - trainer.begun
        run.add_figure("seconds a step", wall / STEPS, "s")
        run.add_figure("share outside forward, backward and optimizer", 1 - trainer.inside / wall, "%", at_most=0.03)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

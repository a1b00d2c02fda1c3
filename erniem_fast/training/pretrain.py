"""Pre-training from files to a saved model: resumable, whole or not at all.

pretrain(model, tokenizer, "out", PretrainingSettings(steps=1000), Corpora(["pairs.tsv"], ["texts.txt"]))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from transformers import TrainingArguments

from ..files.errors import InputError
from ..version import __version__
from .callbacks import Curve, Interruption, Progress
from .machine import DTYPES, Machine
from .mixing import Mixture, Part
from .pretraining_settings import Corpora, PretrainingSettings, make_parts
from .pretraining_trainer import EveryFewSteps, PretrainingTrainer
from .run_folder import RunFolder

CHANGEABLE = ("skip_bad_lines", "save_every")
"""Settings that may be others when a run is gone on with."""


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        steps: updates of the weights.
        tokens: tokens of all batches, on all ranks.
        cut: samples that were cut to the longest sequence, on all ranks.
        bad_lines: lines that were left out in one pass over the files.
        figures: of the last evaluation, by their names.
    """

    steps: int
    tokens: int
    cut: int
    bad_lines: int
    figures: Mapping[str, float]


def pretrain(
    model: Any,
    tokenizer: Any,
    out: str,
    settings: PretrainingSettings,
    corpora: Corpora,
    evaluation: Corpora | None = None,
    *,
    device: str = "auto",
    restart: bool = False,
    about: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Pre-train a model, and put it with its tokenizer into a folder.

    A run that was stopped is gone on with by the same call, with the losses that it would have had, bit for bit; what
    it keeps until then is in `out`.partial. Under torchrun or `accelerate launch` each process reads its own share of
    the samples, and the first one alone prints and writes.

    Args:
        model: an `ErnieMForPreTraining`, or a model of another family that `padding_free` has changed, with the head
            that its objectives train. Its weights are changed in place; those of a checkpoint go first.
        tokenizer: of the model.
        out: folder to write, which must not hold other files: the model, and `metrics.jsonl` with the losses.
        settings: objectives and their options.
        corpora: what they read.
        evaluation: what they are evaluated on; None: nothing.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".
        restart: drop what an earlier run has left.
        about: what else the result depends on, such as the model's name: values of JSON by the names that errors give.
        say: takes lines about the run.

    Raises:
        InputError: bad input, or an `out` that holds something else.
        NonFiniteLossError: a loss of NaN or infinity; the batch and the model before it are saved.
        SavingError: a checkpoint that can't be written; the one before is whole.
        StoppedError: a signal has come; the same call goes on.
    """
    machine = Machine(settings.dtype, device)
    say = machine.once(say)
    limits = model.base_model.limits
    most = min(limits.max_tokens, tokenizer.model_max_length)
    if settings.max_length is None:
        settings = replace(settings, max_length=most)
    elif settings.max_length > most:
        raise InputError(f"--max-length {settings.max_length}: the model takes at most {most} tokens")

    def parts_of(read: Corpora, shuffled: bool) -> list[Part]:
        parts = make_parts(
            tokenizer, settings, read, model.config, first_position=limits.first_position, rank=machine.rank,
            world_size=machine.processes, shuffled=shuffled,
        )  # fmt: skip
        for part in parts:
            part.stream.check()
        return parts

    parts = parts_of(corpora, True)
    held_out = [] if evaluation is None else parts_of(evaluation, False)
    asked = {
        "the command": "pretrain",
        **(about or {}),
        **{f"--{name.replace('_', '-')}": value for name, value in asdict(settings).items() if name not in CHANGEABLE},
        "the files": {part.name: part.stream.state_dict()["inputs"] for part in parts},
        "--eval": {part.name: part.stream.state_dict()["inputs"] for part in held_out},
        "--device": device,
        "the number of processes": machine.processes,
        "the version": __version__,
    }
    with RunFolder.open(out, asked, restart, say, machine.leads) as run:
        arguments = _arguments(run, settings, machine)
        if run.complete:
            return Outcome(**run.settled["outcome"])
        mixture = Mixture(parts, tokenizer, batch_tokens=settings.batch_tokens, seed=settings.seed, rank=machine.rank)
        trainer = PretrainingTrainer(model, arguments, mixture, held_out, tokenizer, settings.batch_tokens)
        _train(trainer, run, settings, say, machine.leads)
        bad = {tuple(part.stream.state_dict()["inputs"]): part.stream.bad_lines for part in parts}
        outcome = Outcome(
            steps=trainer.state.global_step,
            tokens=trainer.total(trainer.tokens),
            cut=trainer.total(trainer.cut),
            bad_lines=sum(bad.values()),
            figures=_last_figures(trainer.state.log_history),
        )
        if machine.leads:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(run.result)
            tokenizer.save_pretrained(run.result)
            run.settle(**{**run.settled, "outcome": asdict(outcome)})
            run.put_in_place()
        trainer.accelerator.wait_for_everyone()
    return outcome


def _train(
    trainer: PretrainingTrainer, run: RunFolder, settings: PretrainingSettings, say: Callable[[str], None], leads: bool
) -> None:
    """Train from the last checkpoint to the last step."""
    trainer.accelerator.wait_for_everyone()  # the first process has cleared the folder
    checkpoint = trainer.newest_checkpoint()
    if checkpoint is not None:
        say(f"Going on from {checkpoint}")
        trainer.resume(checkpoint)
        if trainer.take_ended(checkpoint):
            return
    progress = Progress("loss", leads)
    trainer.add_callback(progress)
    if leads:
        run.checkpoints.mkdir(exist_ok=True)
        trainer.add_callback(Curve(run.curve))
    try:
        with Interruption(say).installed() as interruption:
            trainer.add_callback(interruption)
            trainer.add_callback(EveryFewSteps(settings.eval_every if trainer.evaluation else None))
            trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        progress.close()


def _arguments(run: RunFolder, settings: PretrainingSettings, machine: Machine) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(run.checkpoints),
        max_steps=settings.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        save_strategy="steps",
        save_steps=settings.save_every,
        logging_strategy="steps",
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        use_cpu=machine.place.type == "cpu",
        report_to="none",
        disable_tqdm=True,
        **DTYPES[machine.settle_dtype(run)],
    )


def _last_figures(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    evaluations = [entry for entry in history if "eval_loss" in entry]
    return {name: value for name, value in sorted(evaluations[-1].items()) if name != "step"} if evaluations else {}

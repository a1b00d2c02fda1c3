"""Fine-tuning from files: data and a checkpoint in, a folder with the best model, its tokenizer and a card out.

task = Asked(Classification, {"label_column": "language"})
fine_tune(task, "train.jsonl", "dev.jsonl", model="ernie-m-base", out="languages")
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import EarlyStoppingCallback, EvalPrediction, PrinterCallback, TrainingArguments, set_seed

from .. import modeling
from ..configuration import ErnieMConfig
from ..files.errors import InputError
from ..files.rows import BadLines
from ..files.source import open_source
from ..inference.loading import load_config, load_tokenizer, load_trainable, max_tokens_of, model_class, model_files
from ..version import __version__
from .callbacks import Curve, Interruption, Progress, StoppedError
from .card import model_card
from .machine import DTYPES, Machine
from .objective import Objective
from .presets import Settings, find_preset, settings_of
from .run_folder import RunFolder
from .tasks.base import Asked, Example, Feature, FineTuningTask, Head, HeadMismatchError
from .trainer import PackedTrainer, num_tokens


class Recipe:
    """What a run does besides: changes of the model, of the examples, and of what is learned. This one changes nothing.

    Distillation is a subclass.
    """

    def asked(self) -> Mapping[str, Any]:
        """What the result depends on, values of JSON by the options that give them."""
        return {}

    def model(self, model: Any, max_length: int) -> Any:
        """The model to train, made of the one that was loaded, such as one with fewer layers.

        Args:
            model: with its head, in training mode.
            max_length: most tokens of a sequence.
        """
        return model

    def examples(self, examples: list[Example]) -> list[Example]:
        """The examples to train on, made of those that were read, such as noisy ones besides."""
        return examples

    def objective(self, objective: Objective, model: Any) -> Objective:
        """What is learned, made of the task's own objective.

        Args:
            objective: of the task, or the model's head.
            model: that is trained, on its device.
        """
        return objective

    def finish(self, model: Any) -> None:
        """Take away what the model has for training only, before it is saved.

        Args:
            model: the best one.
        """


@dataclass(frozen=True)
class Data:
    """The examples of a file, and what the collator takes."""

    examples: list[Any]
    lines: list[int | None]
    features: list[Feature]


def fine_tune(
    asked: Asked,
    train: str,
    dev: str | None,
    *,
    model: str,
    out: str,
    settings: Mapping[str, Any] | None = None,
    preset: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    gradient_checkpointing: bool = False,
    compiled: bool = False,
    new_head: bool = False,
    skip_bad_lines: bool = False,
    restart: bool = False,
    recipe: Recipe | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Fine-tune a checkpoint, and put the best model of the evaluations into a folder.

    A run that was stopped is gone on with by the same call, with the losses that it would have had, bit for bit; what
    it keeps until then is in `out`.partial. Under torchrun or `accelerate launch` each process takes its share of every
    step, and the first one alone prints and writes.

    Args:
        asked: the task.
        train, dev: files of examples; without dev nothing is evaluated, and the last model is the result.
        model: a folder, or an id on the Hub.
        out: folder to write, which must not hold other files.
        settings: values of `Settings` by name; None where the preset or the default holds.
        preset: a key of `PRESETS`.
        dtype: "float32", "bfloat16" or "float16" to compute in; "auto": bfloat16 where that is fast, else float32.
        device: "cpu", "cuda", or "auto".
        gradient_checkpointing: keep each layer's input only, and compute the rest again in backward.
        compiled: compile the model by torch.compile.
        new_head: make a new head even where the checkpoint has one.
        skip_bad_lines: leave malformed lines out and count them.
        restart: drop what an earlier run has left.
        recipe: what is done besides.
        say: takes lines about the run.

    Returns:
        Figures of the best evaluation, by the names of the task's metrics; of no evaluation none.

    Raises:
        InputError: data, options or folders that can't be used.
        CheckpointError: a model that can't be used.
        NonFiniteLossError: a loss of NaN or infinity.
        SavingError: a checkpoint that can't be written.
        StoppedError: a signal has come; the same call goes on.
    """
    machine = Machine(dtype, device)
    say = machine.once(say)
    recipe = Recipe() if recipe is None else recipe
    config = load_config(model, any_family=True)
    values = find_preset(preset, asked.task.name)
    chosen = settings_of(values, config.hidden_size, settings or {})
    if dev is None and chosen.patience is not None:
        raise InputError(f"--patience {chosen.patience}: expected --dev, too, whose figures it waits for")
    options = {**values.options, **{name: value for name, value in asked.options.items() if value is not None}}
    identity = {
        "the command": asked.task.name,
        "TRAIN": _identity(train, asked.task, "TRAIN"),
        "--dev": None if dev is None else _identity(dev, asked.task, "--dev"),
        "--model": model,
        "the model's files": model_files(model),
        **{f"--{name.replace('_', '-')}": value for name, value in options.items()},
        **chosen.by_option(),
        "--dtype": dtype,
        "--device": device,
        "--gradient-checkpointing": gradient_checkpointing,
        "--compile": compiled,
        "--new-head": new_head,
        "--skip-bad-lines": skip_bad_lines,
        **recipe.asked(),
        "the number of processes": machine.processes,
        "the version": __version__,
    }
    with RunFolder.open(out, identity, restart, say, machine.leads) as run:
        if run.complete:
            return dict(run.settled.get("figures", {}))
        return _Run(
            asked.task, options, train, dev, model, config, chosen, recipe, run, say, machine,
            gradient_checkpointing, compiled, new_head, skip_bad_lines,
        ).do(identity)  # fmt: skip


@dataclass
class _Run:
    """One run, from the files to the folder."""

    task_class: type[FineTuningTask[Any]]
    options: Mapping[str, Any]
    train: str
    dev: str | None
    model_name: str
    config: Any
    settings: Settings
    recipe: Recipe
    folder: RunFolder
    say: Callable[[str], None]
    machine: Machine
    gradient_checkpointing: bool
    compiled: bool
    new_head: bool
    skip_bad_lines: bool

    def do(self, identity: Mapping[str, Any]) -> dict[str, float]:
        """Train, and put the model in place."""
        tokenizer = load_tokenizer(self.model_name, self.config)
        cls = head_class(self.config, self.task_class.head, self.model_name)
        most = min(max_tokens_of(self.config), tokenizer.model_max_length)
        limit = self.settings.max_length or min(most, self.task_class.usual_length or most)
        if limit > most:
            raise InputError(f"--max-length {limit}: the model takes at most {most} tokens")
        task = self.task_class(tokenizer, limit, **self.options)
        task.shows_progress = self.machine.leads
        train, dev = self._read(task, cls)
        set_seed(self.settings.seed)
        model, new = load_trainable(self.model_name, cls, self.config, self.new_head)
        if new:
            self.say(f"New parameters, which begin at random: {', '.join(new)}")
        if self.gradient_checkpointing and not model.supports_gradient_checkpointing:
            raise InputError(f"--gradient-checkpointing: transformers has none for {type(model).__name__}")
        model = self.recipe.model(model, limit)
        data = self._features(task, train, True)
        held_out = None if dev is None else self._features(task, dev, False)
        trainer = self._trainer(task, model, data, held_out)
        if self.machine.processes == 1:  # else a step's batch is that of all processes
            task.check_batches(trainer.batch_sizes, data.examples)
        for note in task.notes:
            self.say(note)
        return self._go(trainer, task, tokenizer, data, held_out, identity)

    def _read(self, task: FineTuningTask[Any], cls: Any) -> tuple[tuple[list, list], tuple[list, list] | None]:
        """Examples and their lines, and the configuration that they ask for."""
        train = self._examples(task, self.train, "TRAIN")
        dev = None if self.dev is None else self._examples(task, self.dev, "--dev")
        has_head = cls.__name__ in (self.config.architectures or []) and not self.new_head
        head = _head_of(self.config) if has_head else None
        try:
            task.fit(train[0], [] if dev is None else dev[0], head)
        except HeadMismatchError as error:
            raise InputError(
                f"--model {self.model_name!r}: {error}; expected the head's labels, or --new-head to train a new one"
            ) from error
        for name, value in task.config_changes().items():
            setattr(self.config, name, value)
        return train, dev

    def _examples(self, task: FineTuningTask[Any], name: str, what: str) -> tuple[list, list]:
        bad = BadLines(self.skip_bad_lines)
        with open_source(name, accepted=task.kinds, what=what) as source:
            found = task.read(source, bad)
        if bad.count:
            self.say(f"{bad.count} bad lines of {name} were left out; the first: {bad.first}")
        return found, list(task.lines)

    def _features(self, task: FineTuningTask[Any], read: tuple[list, list], training: bool) -> Data:
        examples, lines = read
        if training:
            examples = self.recipe.examples(examples)
        before = len(task.notes)
        features = task.features(examples, training)
        task.notes[before:] = [f"{'TRAIN' if training else '--dev'}: {note}" for note in task.notes[before:]]
        return Data(examples, lines, features)

    def _trainer(self, task: FineTuningTask[Any], model: Any, data: Data, dev: Data | None) -> PackedTrainer:
        """The trainer, on its device."""
        objective = task.objective(model)

        def metrics(predictions: EvalPrediction) -> dict[str, float]:
            assert dev is not None
            return task.metrics(predictions, dev.examples, dev.features)

        trainer = PackedTrainer(
            model, self._arguments(task, dev),
            train_dataset=data.features,
            eval_dataset=None if dev is None else dev.features,
            data_collator=task.collator(model),
            compute_metrics=None if dev is None else metrics,
            batch_tokens=self.settings.batch_tokens,
            layer_decay=self.settings.layer_decay,
            objective=objective,
            name_of=lambda place: _name_of(data, place),
        )  # fmt: skip
        trainer.objective = self.recipe.objective(trainer.objective, model)
        trainer.remove_callback(PrinterCallback)
        if self.settings.patience is not None and dev is not None:
            trainer.add_callback(EarlyStoppingCallback(self.settings.patience))
        return trainer

    def _arguments(self, task: FineTuningTask[Any], dev: Data | None) -> TrainingArguments:
        settings = self.settings
        steps = settings.eval_steps
        every = {} if steps is None else {"eval_steps": steps, "save_steps": steps}
        when = "epoch" if steps is None else "steps"
        device = self.machine.place
        mean = 1.0 if dev is None else float(np.mean([num_tokens(feature) for feature in dev.features]))
        arguments = TrainingArguments(
            output_dir=str(self.folder.checkpoints),
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            warmup_steps=settings.warmup,
            weight_decay=settings.weight_decay,
            gradient_accumulation_steps=settings.accumulate,
            per_device_eval_batch_size=max(1, int(settings.batch_tokens / mean)),
            seed=settings.seed,
            eval_strategy=when if dev is not None else "no",
            save_strategy=when,
            **every,
            load_best_model_at_end=dev is not None,
            restore_callback_states_from_checkpoint=True,  # how long the figure has not been better, for --patience
            metric_for_best_model=task.best_metric if dev is not None else None,
            greater_is_better=True if dev is not None else None,
            logging_strategy="steps",
            logging_steps=1,
            logging_nan_inf_filter=False,
            label_names=list(task.label_names),
            remove_unused_columns=False,
            dataloader_pin_memory=device.type == "cuda",
            torch_compile=self.compiled,
            use_cpu=device.type == "cpu",
            report_to="none",
            disable_tqdm=True,
            **DTYPES[self.machine.settle_dtype(self.folder)],
        )
        if self.gradient_checkpointing:
            name = "activation" if hasattr(arguments, "activation_checkpointing") else "gradient"
            setattr(arguments, f"{name}_checkpointing", True)
        return arguments

    def _go(
        self, trainer: PackedTrainer, task: FineTuningTask[Any], tokenizer: Any, data: Data, dev: Data | None,
        identity: Mapping[str, Any],
    ) -> dict[str, float]:  # fmt: skip
        """Train from the last checkpoint, and write the model."""
        trainer.accelerator.wait_for_everyone()  # the first process has cleared the folder
        checkpoint = trainer.newest_checkpoint()
        if checkpoint is not None:
            self.say(f"Going on from {checkpoint}")
        if checkpoint is None or not trainer.take_ended(checkpoint):
            self._train(trainer, checkpoint, task.best_metric if dev is not None else "")
        figures = best_figures(trainer.state)
        if self.machine.leads:
            self._put_in_place(trainer, task, tokenizer, data, figures)
        trainer.accelerator.wait_for_everyone()
        return figures

    def _train(self, trainer: PackedTrainer, checkpoint: str | None, metric: str) -> None:
        """Train to the end."""
        progress = Progress(metric, self.machine.leads)
        trainer.add_callback(progress)
        if self.machine.leads:
            self.folder.checkpoints.mkdir(exist_ok=True)
            trainer.add_callback(Curve(self.folder.curve))
        try:
            with Interruption(self.say).installed() as interruption:
                trainer.add_callback(interruption)
                trainer.train(resume_from_checkpoint=checkpoint)
                if interruption.number:
                    raise StoppedError(interruption.number, trainer.state.global_step)
        finally:
            progress.close()

    def _put_in_place(
        self, trainer: PackedTrainer, task: FineTuningTask[Any], tokenizer: Any, data: Data,
        figures: Mapping[str, float],
    ) -> None:  # fmt: skip
        """Write the model, its tokenizer and its card."""
        folder, model = self.folder.result, trainer.accelerator.unwrap_model(trainer.model)
        self.recipe.finish(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        task.save_files(folder, model)
        state = trainer.state
        about = {
            "steps": state.global_step,
            f"{task.unit} for training": len(data.examples),
            "parameters": f"{model.num_parameters():,}",
            "computed in": self.folder.settled.get("dtype", self.machine.dtype),
            "processes": self.machine.processes,
        }
        files = {"training": self.train} | ({} if self.dev is None else {"evaluation": self.dev})
        options = {f"--{name.replace('_', '-')}": value for name, value in self.options.items()}
        besides = {name: value for name, value in self.recipe.asked().items() if name.startswith("--") and value}
        card = model_card(
            self.folder.target.name, task.head, self.model_name, files, figures,
            {**options, **self.settings.by_option(), **besides}, about,
        )  # fmt: skip
        (folder / "README.md").write_text(card, encoding="utf-8")
        self.folder.settle(**{**self.folder.settled, "figures": figures})
        self.folder.put_in_place()


def head_class(config: Any, head: str, name: str) -> Any:
    """Class of a head of the configuration's family.

    Args:
        config: of ErnieM or another family.
        head: end of the class's name, "Model" for an encoder.
        name: of the checkpoint, for messages.

    Raises:
        InputError: the family has no such head.
    """
    if isinstance(config, ErnieMConfig):
        return getattr(modeling, f"ErnieM{head}")
    import transformers

    if head == "Model":
        return model_class(config)
    auto = getattr(transformers, f"AutoModel{head}", None)
    found = None if auto is None else auto._model_mapping.get(type(config), None)
    if found is None:
        raise InputError(f"--model {name!r}: {config.model_type} has no head {head}; expected another model")
    return found


def best_figures(state: Any) -> dict[str, float]:
    """Figures of the best evaluation of a run, by the names of the metrics."""
    evaluations = [entry for entry in state.log_history if any(name.startswith("eval_") for name in entry)]
    if not evaluations:
        return {}
    best = next((one for one in evaluations if one["step"] == state.best_global_step), evaluations[-1])
    # Sorted as in a checkpoint, so that a run that went on from one has the same order.
    names = sorted(name for name in best if name.startswith("eval_") and not name.endswith(SPEEDS))
    return {name.removeprefix("eval_"): float(best[name]) for name in names}


SPEEDS = ("_runtime", "_per_second")
"""Endings of the figures that say how fast an evaluation was."""


def _head_of(config: Any) -> Head:
    labels = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    return Head(labels, config.problem_type)


def _identity(name: str, task: type[FineTuningTask[Any]], what: str) -> str:
    with open_source(name, accepted=task.kinds, what=what) as source:
        found = source.identity
    if found is None:
        raise InputError(f"{what} {name!r}: is a pipe, which can't be read again; expected a file")
    return found


def _name_of(data: Data, place: int) -> str:
    """Name of a feature's example in messages: its line, or its place."""
    example = data.features[place].get("example", place)
    line = data.lines[example] if example < len(data.lines) else None
    return f"line {line}" if line is not None else f"sample {example}"

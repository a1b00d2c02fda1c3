"""Fine-tuning of a student beside a teacher: what `fine_tune` does besides with `--distill`.

recipe = DistillationRecipe("teacher", student_layers=2, temperature=2.0, weight=0.7)
fine_tune(task, "train.jsonl", "dev.jsonl", model="teacher", out="student", recipe=recipe)
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..files.errors import InputError
from ..inference.loading import load_config, load_tokenizer, load_trainable, max_tokens_of, model_files
from .augment import Augmentation, Tagger, augment
from .distill import HEADS, Distillation, DistilledObjective
from .finetune import Recipe, head_class
from .objective import Objective
from .students import check_layer_map, check_same_tokens, num_layers, parse_layer_map, student_from
from .tasks import classify


class DistillationRecipe(Recipe):
    """Learn from a teacher, perhaps with fewer layers, perhaps from changed copies of the texts.

    Args:
        teacher: a folder, or an id on the Hub, with the head of the task, its labels, and the tokenizer of the model.
        student_layers: layers that the model keeps, evenly spaced; None: all of them.
        temperature, weight: see `Distillation`.
        layer_map: "1:2,2:4": hidden states of the student's layers learn those of the teacher's; None: none do.
        augmentation: of texts to classify; None: as they are. The copies have no labels: the teacher labels them.
        tagger: gives the parts of speech for `Augmentation.pos`, where the data has none.

    Raises:
        InputError: a layer map that can't be read, or a temperature or weight out of range.
    """

    def __init__(
        self,
        teacher: str,
        *,
        student_layers: int | None = None,
        temperature: float = 2.0,
        weight: float = 0.5,
        layer_map: str | None = None,
        augmentation: Augmentation | None = None,
        tagger: Tagger | None = None,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise InputError(f"--temperature {temperature}: expected a number above 0")
        if not 0 <= weight <= 1:
            raise InputError(f"--distill-weight {weight}: expected a number from 0 to 1")
        self.teacher, self.student_layers = teacher, student_layers
        self.temperature, self.weight = temperature, weight
        self.augmentation, self.tagger = augmentation, tagger
        self._distillation: Distillation | None = None
        self._unk_token = ""
        with _naming("--layer-map", layer_map):
            self.layer_map = {} if layer_map is None else parse_layer_map(layer_map)

    def asked(self) -> Mapping[str, Any]:
        augmentation = self.augmentation
        with _naming("--distill", self.teacher):
            load_config(self.teacher, any_family=True)
            files = model_files(self.teacher)
        return {
            "--distill": self.teacher,
            "the teacher's files": files,
            "--student-layers": self.student_layers,
            "--temperature": self.temperature,
            "--distill-weight": self.weight,
            "--layer-map": self._layers(),
            "--augment": None if augmentation is None else vars(augmentation),
            "the tagger": getattr(self.tagger, "__qualname__", None),
        }

    def model(self, model: Any, max_length: int) -> Any:
        """The student."""
        name = model.name_or_path
        config = load_config(self.teacher, any_family=True)
        tokenizer = load_tokenizer(name, model.config)
        self._unk_token = str(tokenizer.unk_token)
        student = self._student(model)
        with _naming("--distill", self.teacher):
            check_same_tokens(tokenizer, load_tokenizer(self.teacher, config))
        most = max_tokens_of(config)
        if most < max_length:
            raise InputError(f"--distill {self.teacher!r}: takes {most} tokens; expected --max-length {most} or less")
        head = next((end for end in HEADS if type(model).__name__.endswith(end)), None)
        if head is None:
            raise InputError(f"--distill {self.teacher!r}: expected a task whose head gives scores")
        cls = head_class(config, head, self.teacher)
        if cls.__name__ not in (config.architectures or []):
            held = ", ".join(config.architectures or ["no head"])
            raise InputError(f"--distill {self.teacher!r}: expected a model with the head {cls.__name__}, got {held}")
        teacher, new = load_trainable(self.teacher, cls, config, False)
        if new:
            raise InputError(f"--distill {self.teacher!r}: expected a fine-tuned model, its weights lack {new[0]}")
        with _naming("--layer-map", self._layers()):
            check_layer_map(self.layer_map, num_layers(student), num_layers(teacher))
        with _naming("--distill", self.teacher):
            self._distillation = Distillation(
                teacher, student, temperature=self.temperature, weight=self.weight, layer_map=self.layer_map
            )
        return student

    def _layers(self) -> str:
        """The layer map, as the option has it."""
        return ",".join(f"{student}:{teacher}" for student, teacher in self.layer_map.items())

    def _student(self, model: Any) -> Any:
        if self.student_layers is None:
            return model
        if not 1 <= self.student_layers <= num_layers(model):
            raise InputError(
                f"--student-layers {self.student_layers}: expected a whole number from 1 to {num_layers(model)}, the "
                f"layers of --model"
            )
        return student_from(model, self.student_layers)

    def examples(self, examples: list[Any]) -> list[Any]:
        """The examples, and behind them the copies, without labels."""
        if self.augmentation is None:
            return examples
        if not isinstance(examples[0], classify.Example):
            raise InputError("--augment: expected texts to classify")
        tags = None
        if self.augmentation.pos and self.tagger is None:
            if any(example.parts_of_speech is None for example in examples):
                raise InputError(
                    "--augment pos: expected --pos-column with the parts of speech of the words, in every line of TRAIN"
                )
            tags = [example.parts_of_speech for example in examples]
        copies = augment(
            [example.texts for example in examples], self.augmentation, self._unk_token, tags=tags, tagger=self.tagger
        )
        return examples + [classify.Example(texts, None) for of_one in copies for texts in of_one]

    def objective(self, objective: Objective, model: Any) -> Objective:
        distillation = self._distillation
        assert distillation is not None, "model() comes first"
        distillation.teacher.to(model.device)
        return DistilledObjective(distillation, objective)

    def finish(self, model: Any) -> None:
        """Take the projections away."""
        if self._distillation is not None:
            self._distillation.finish()


@contextmanager
def _naming(option: str, value: str | None) -> Iterator[None]:
    """Context in which a ValueError, a CheckpointError among them, becomes an InputError about an option."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{option} {value!r}: {str(error).removeprefix(f'model {value!r}: ')}") from error

"""Students of distillation: a shallower copy of a teacher, which layer learns from which, and what must be the same."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel

from ..padding_free import padding_free

M = TypeVar("M", bound=PreTrainedModel)

PROBE = "Zażółć gęślą jaźń, 2024! Où est-ce? 今日は良い天気です。 Привет, мир: مرحبا بالعالم"
"""Text that tokenizers of one vocabulary may still split differently: case, accents, scripts, digits."""


def evenly_spaced(student_layers: int, teacher_layers: int) -> dict[int, int]:
    """Map each layer of a student to the last layer of its share of the teacher's: {1: 2, 2: 4} for 2 of 4.

    Args:
        student_layers: layers of the student, at least 1 and no more than the teacher's.
        teacher_layers: layers of the teacher.

    Raises:
        ValueError: a number of layers that a student can't have.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise ValueError(f"layers must lie in [1, {teacher_layers}], the teacher's layers, got {student_layers}")
    half = student_layers // 2  # rounds to the nearest
    return {layer: (layer * teacher_layers + half) // student_layers for layer in range(1, student_layers + 1)}


def parse_layer_map(text: str) -> dict[int, int]:
    """Read "1:2,2:4": the student's layer 1 learns from the teacher's layer 2, its layer 2 from layer 4.

    Raises:
        ValueError: the text is no such list, or names a student's layer twice.
    """
    layers: dict[int, int] = {}
    for part in text.split(","):
        student, colon, teacher = (piece.strip() for piece in part.partition(":"))
        if not (colon and student.isdecimal() and teacher.isdecimal()):
            raise ValueError(f"layer map must read like 1:2,2:4 (student's layer:teacher's layer), got {text!r}")
        if int(student) in layers:
            raise ValueError(f"layer map must name each layer of the student once, got {student} twice in {text!r}")
        layers[int(student)] = int(teacher)
    return layers


def check_layer_map(layer_map: Mapping[int, int], student_layers: int, teacher_layers: int) -> None:
    """Check that all layers are there; 0 is the embeddings' output.

    Raises:
        ValueError: one is not.
    """
    for student, teacher in layer_map.items():
        if not 0 <= student <= student_layers or not 0 <= teacher <= teacher_layers:
            raise ValueError(
                f"layer map must lead from layers 0 (embeddings) to {student_layers} of the student to layers 0 to "
                f"{teacher_layers} of the teacher, got {student}:{teacher}"
            )


def student_from(teacher: M, layers: int) -> M:
    """Copy a model with fewer layers: embeddings, evenly spaced layers and the head, all with the teacher's weights.

    Layer i of n is the teacher's layer i * N / n, rounded (`evenly_spaced`), so that its output is what the same layer
    map teaches it.

    Args:
        teacher: ErnieM, or a model of a family that `padding_free` knows, padding-free or not; with any head.
        layers: of the student.

    Returns:
        A new padding-free model of the teacher's class, dtype and device, in training mode; it shares no memory with
        the teacher.

    Raises:
        TypeError: `teacher` is no model of transformers', as one with adapters, which are to be merged first.
        ValueError: it has fewer layers, or is of no family that `padding_free` knows.
    """
    if not isinstance(teacher, PreTrainedModel):
        raise TypeError(f"teacher must be a PreTrainedModel (adapters merged), got {type(teacher).__name__}")
    total = num_layers(teacher)
    chosen = evenly_spaced(layers, total)
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = layers
    pruned = getattr(config, "pruned_heads", None)
    if pruned:  # by index from 0
        config.pruned_heads = {new - 1: pruned[old - 1] for new, old in chosen.items() if old - 1 in pruned}
    student = type(teacher)(config)
    given = teacher.state_dict()
    state = {name: given[_teacher_name(teacher, name, chosen)] for name in student.state_dict()}
    student = student.to(device=teacher.device, dtype=teacher.dtype)
    student.load_state_dict(state)
    return padding_free(student).train()


def num_layers(model: Any) -> int:
    """Layers of a model's encoder."""
    return int(model.config.num_hidden_layers)


def _teacher_name(teacher: nn.Module, name: str, chosen: dict[int, int]) -> str:
    """Name of the parameter that one of the student's is a copy of."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        stack = teacher.get_submodule(".".join(parts[:place])) if part.isdecimal() else None
        # XLM keeps four lists, one for each part of a layer.
        if isinstance(stack, nn.ModuleList) and len(stack) == num_layers(teacher):
            return ".".join([*parts[:place], str(chosen[int(part) + 1] - 1), *parts[place + 1 :]])
    return name


def check_same_labels(student: Any, teacher: Any) -> None:
    """Check that two classifiers give the same labels in the same order.

    Raises:
        ValueError: they do not.
    """
    own, taught = (
        [label for _, label in sorted((int(key), label) for key, label in model.config.id2label.items())]
        for model in (student, teacher)
    )
    if own != taught:
        raise ValueError(
            f"the teacher's labels must be the student's, in the same order: the student has {_few(own)}, "
            f"the teacher {_few(taught)}"
        )


def _few(labels: list[str]) -> str:
    shown = ", ".join(map(str, labels[:8]))
    return f"{len(labels)} ({shown}{', ...' if len(labels) > 8 else ''})"


def check_same_tokens(student: Any, teacher: Any) -> None:
    """Check that two tokenizers turn text into the same ids.

    Raises:
        ValueError: their vocabularies differ, or what they make of a text.
    """
    names = [getattr(one, "name_or_path", "") or type(one).__name__ for one in (student, teacher)]
    both = f"the teacher ({names[1]}) and the student ({names[0]}) must have one tokenizer"
    own, taught = student.get_vocab(), teacher.get_vocab()
    if own != taught:
        different = sorted(token for token in own.keys() | taught.keys() if own.get(token) != taught.get(token))
        token = different[0]
        raise ValueError(
            f"{both}: {len(different):,} tokens have different ids, {token!r} has {taught.get(token, 'none')} and "
            f"{own.get(token, 'none')}; vocabularies of {len(taught):,} and {len(own):,}"
        )
    if list(student(PROBE)["input_ids"]) != list(teacher(PROBE)["input_ids"]):
        raise ValueError(f"{both}: their vocabularies are the same, but they split text differently")

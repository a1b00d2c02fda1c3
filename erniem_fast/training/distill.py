"""Knowledge distillation: a student learns from a teacher's logits and hidden states, on the same packed batches.

Logits: Hinton et al., arXiv 1503.02531. Hidden states, projected where widths differ: Jiao et al. (TinyBERT),
arXiv 1909.10351. All means are over real tokens, whatever the form of the batch.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import IGNORED
from ..padding_free import padding_free
from .students import check_layer_map, check_same_labels, num_layers

HEADS = {
    "ForSequenceClassification": "sequences",
    "ForMultipleChoice": "choices",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "spans",
    "ForQuestionAnsweringSimple": "spans",
    "ForInformationExtraction": "boundaries",
}
"""What the logits of a head score, by the end of its name."""
LABELS = ("labels", "start_positions", "end_positions", "num_items_in_batch")
SPANS = ("start_logits", "end_logits")
PROJECTIONS = "distillation_projections"
"""Name that the projections have in the student while it learns."""


class Distillation:
    """A teacher, and the loss that a student has beside it.

    The student's loss is (1 - weight) * its own + weight * (that of the logits + that of the hidden states):

    - classes of sequences, choices and tokens: KL divergence of the softmax at the temperature, times its square, so
      that its gradient doesn't shrink with it; mean over sequences, samples, real tokens
    - answers to questions: the same over the tokens of a sequence, mean of starts and ends
    - several labels, boundaries of spans: binary KL divergence of the sigmoids; of boundaries a sequence counts as the
      mean over its tokens
    - regression: squared difference
    - hidden states: squared difference of each pair of layers, mean over width and real tokens, sum over the pairs

    The teacher is put into evaluation mode, gets no gradients, is made padding-free where it is not, and computes each
    batch once. It may be of another family, device, dtype and width. Token types and the like that it doesn't take are
    left out, those that the batch lacks are 0.

    Args:
        teacher: any head in `HEADS`.
        student: with the same head and labels; where layers of different widths are mapped it gets a module
            `distillation_projections` that learns with it, until `finish` takes it away.
        temperature: of both softmaxes, above 0.
        weight: share of the teacher's loss, in [0, 1].
        layer_map: {student's layer: teacher's layer} whose outputs are compared, 0 the embeddings' output; None or
            empty: logits only.

    Raises:
        ValueError: heads or labels that don't match, a layer that isn't there, a temperature or weight out of range.
    """

    def __init__(
        self,
        teacher: Any,
        student: Any,
        *,
        temperature: float = 2.0,
        weight: float = 0.5,
        layer_map: Mapping[int, int] | None = None,
    ) -> None:
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must lie in [0, 1], got {weight}")
        self.kind = _kind(student, "student")
        if _kind(teacher, "teacher") != self.kind:
            raise ValueError(
                f"the teacher's head must be the student's, got a {type(teacher).__name__} and a "
                f"{type(student).__name__}"
            )
        if self.kind in ("sequences", "tokens"):
            check_same_labels(student, teacher)
        self.layer_map = dict(layer_map or {})
        check_layer_map(self.layer_map, num_layers(student), num_layers(teacher))
        self.teacher = padding_free(teacher).eval().requires_grad_(False)
        self.student, self.temperature, self.weight = student, temperature, weight
        self.problem = student.config.problem_type if self.kind == "sequences" else None
        if self.kind == "sequences" and student.config.num_labels == 1:
            self.problem = "regression"
        widths = student.config.hidden_size, teacher.config.hidden_size
        if self.layer_map and widths[0] != widths[1] and not hasattr(student, PROJECTIONS):
            made = nn.ModuleDict({str(layer): nn.Linear(*widths) for layer in self.layer_map})
            student.add_module(PROJECTIONS, made.to(student.device, student.dtype))

    @property
    def fills_in_labels(self) -> bool:
        """True if labels are numbers, of which -100 is none to ignore: the teacher's takes its place."""
        return self.problem in ("regression", "multi_label_classification")

    def finish(self) -> None:
        """Take the projections away from the student, which then saves what its class has."""
        self.student._modules.pop(PROJECTIONS, None)

    def counts(self, inputs: Mapping[str, Any]) -> Tensor:
        """(2,) int64: how many the loss of the logits is a mean over, and real tokens. They add up over batches."""
        layout = Layout.of(inputs, self.student)
        items = int((layout.lengths > 0).sum())
        if self.kind == "sequences":
            items = len(layout.lengths) * (self.student.config.num_labels if self.fills_in_labels else 1)
        elif self.kind == "choices":
            padded = inputs.get("padded_shape")
            items = inputs["input_ids"].shape[0] if padded is None else padded[0]
        elif self.kind == "tokens":
            items = layout.total
        return torch.tensor([items, layout.total], device=layout.lengths.device)

    def teach(self, inputs: Mapping[str, Any]) -> "Lesson":
        """Run the teacher on a batch of the student's, in any form.

        Args:
            inputs: arguments of the student's forward, with or without labels.
        """
        device = self.teacher.device
        given = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in inputs.items()
                 if key not in LABELS}  # fmt: skip
        limits, own = self.teacher.base_model.limits, self.student.base_model.limits
        for name in own.token_ids.keys() - limits.token_ids.keys():
            given.pop(name, None)
        if given.get("position_ids") is not None:
            given["position_ids"] = given["position_ids"] + (limits.first_position - own.first_position)
        elsewhere = inputs["input_ids"].device
        with torch.no_grad():
            outputs = self.teacher(**given, output_hidden_states=bool(self.layer_map), return_dict=True)
        logits = {name: value.to(elsewhere) for name, value in outputs.items() if name.endswith("logits")}
        wanted = {layer: outputs.hidden_states[layer].to(elsewhere) for layer in set(self.layer_map.values())}
        return Lesson(self, self._student_inputs(inputs, logits), logits, wanted)

    def _student_inputs(self, inputs: Mapping[str, Any], taught: dict[str, Tensor]) -> dict[str, Any]:
        given = dict(inputs)
        labels = given.get("labels")
        if self.fills_in_labels and isinstance(labels, Tensor):
            answers = taught["logits"] if self.problem == "regression" else taught["logits"].sigmoid()
            answers = answers.reshape(labels.shape).to(labels.dtype)
            given["labels"] = torch.where(labels == IGNORED, answers, labels)
        return given | ({"output_hidden_states": True} if self.layer_map else {})


class DistilledObjective:
    """An objective with a teacher's loss beside its own; in evaluation mode its own alone.

    Args:
        distillation: the teacher's.
        objective: from (model, batch, num_items) to (loss, outputs): the loss of the student's head.
    """

    def __init__(self, distillation: Distillation, objective: Callable[[Any, dict[str, Any], Any], Any]) -> None:
        self.distillation, self.objective = distillation, objective

    def count_items(self, batch: Mapping[str, Any], labelled: Tensor | int) -> Tensor:
        """(3,) int64 that add up over batches: labels that the head's loss counts, and `Distillation.counts`.

        Args:
            batch: the student's.
            labelled: labels of the batch that are not -100.
        """
        if self.distillation.fills_in_labels:
            labelled = batch["labels"].numel()
        counts = self.distillation.counts(batch)
        return torch.cat([torch.as_tensor(labelled).reshape(1).to(counts), counts])

    def __call__(self, model: Any, batch: dict[str, Any], num_items: Any) -> tuple[Tensor, Any]:
        """Loss and outputs.

        Args:
            model: the student, perhaps wrapped.
            batch: of the student's inputs.
            num_items: `count_items`, summed over the batches of a step; None: losses are means of this batch.
        """
        if not model.training:
            return self.objective(model, batch, None if num_items is None else num_items[0])  # type: ignore[no-any-return]
        lesson = self.distillation.teach(batch)
        hard, outputs = self.objective(model, lesson.inputs, None if num_items is None else num_items[0])
        return lesson.loss(hard, outputs, None if num_items is None else num_items[1:]), outputs


@dataclass
class Lesson:
    """What the teacher says about one batch.

    Attributes:
        distillation: the teacher's.
        inputs: arguments for the student's forward.
        logits: the teacher's, by name.
        hidden_states: the teacher's, by layer.
    """

    distillation: Distillation
    inputs: dict[str, Any]
    logits: dict[str, Tensor]
    hidden_states: dict[int, Tensor]

    def loss(self, hard: Tensor | None, outputs: Any, counts: Tensor | None = None) -> Tensor:
        """The student's whole loss.

        Args:
            hard: its own loss, a scalar, already divided by what it counts; None: there are no labels.
            outputs: of its forward.
            counts: `Distillation.counts`, summed over the batches whose gradients are accumulated; None: this batch's.

        Returns:
            A scalar, float32 at least.
        """
        of = self.distillation
        layout = Layout.of(self.inputs, of.student)
        items, tokens = (of.counts(self.inputs) if counts is None else counts).clamp(min=1).unbind()
        soft = self._of_logits(outputs, layout) / items + self._of_hidden_states(outputs, layout) / tokens
        return of.weight * soft if hard is None else (1 - of.weight) * hard + of.weight * soft

    def _of_logits(self, outputs: Any, layout: "Layout") -> Tensor:
        """Sum over the items."""
        of = self.distillation
        if of.kind in ("spans", "boundaries"):
            parts = [
                self._of_tokens(outputs[name], self.logits[name], layout) for name in ("start_logits", "end_logits")
            ]
            return (parts[0] + parts[1]) / 2
        own, taught = outputs["logits"], self.logits["logits"]
        if of.kind == "tokens":
            own, taught = layout.rows(own), layout.rows(taught)
        if of.problem == "regression":
            return (_upcast(own) - _upcast(taught)).square().sum()
        if of.problem == "multi_label_classification":
            return binary_divergence(own, taught, of.temperature).sum()
        return divergence(own, taught, of.temperature).sum()

    def _of_tokens(self, own: Tensor, taught: Tensor, layout: "Layout") -> Tensor:
        """Sum over the sequences, of scores of their tokens."""
        of, own, taught = self.distillation, layout.rows(own), layout.rows(taught)
        if of.kind == "spans":
            lines = [layout.lines(rows)[layout.lengths > 0] for rows in (own, taught)]
            real = layout.real_lines()[layout.lengths > 0]
            return divergence(lines[0], lines[1], of.temperature, real).sum()
        sums = layout.lines(binary_divergence(own, taught, of.temperature)).sum(1)
        return (sums / layout.lengths.clamp(min=1)).sum()

    def _of_hidden_states(self, outputs: Any, layout: "Layout") -> Tensor:
        """Sum over the real tokens and the pairs of layers."""
        total = torch.zeros((), device=layout.lengths.device)
        projections: Any = getattr(self.distillation.student, PROJECTIONS, None)
        for own, taught in self.distillation.layer_map.items():
            rows = layout.rows(outputs.hidden_states[own])
            if projections is not None:
                rows = projections[str(own)](rows)
            difference = _upcast(rows) - _upcast(layout.rows(self.hidden_states[taught]))
            total = total + difference.square().mean(1).sum()
        return total


@dataclass
class Layout:
    """Real tokens of a batch in any form, one sequence after the other.

    Attributes:
        lengths: (num_sequences,) int64.
        real: (num_sequences, seq_len) bool of a padded batch; None: flattened.
        total: real tokens.
    """

    lengths: Tensor
    real: Tensor | None
    total: int

    @classmethod
    def of(cls, inputs: Mapping[str, Any], model: Any) -> "Layout":
        """The layout of a model's input."""
        offsets = inputs.get("cu_seq_lens_q")
        if offsets is not None:
            return cls(offsets.diff().long(), None, inputs["input_ids"].shape[-1])
        ids, mask = inputs["input_ids"].flatten(0, -2), inputs.get("attention_mask")
        default = model.base_model.limits.default_mask
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None and default is None else (
            default(ids) if mask is None else mask.flatten(0, -2).bool()
        )  # fmt: skip
        return cls(real.sum(1), real, int(real.sum()))

    def rows(self, values: Tensor) -> Tensor:
        """Values of tokens, in a shape that a model gives, to (total, ...)."""
        if self.real is not None:
            return values[self.real]
        if values.shape[:2] == (1, self.total):
            return values[0]
        return values[torch.arange(values.shape[1], device=values.device) < self.lengths[:, None]]

    def real_lines(self) -> Tensor:
        """(num_sequences, longest) bool, True before each sequence's end."""
        longest = int(self.lengths.max())
        return torch.arange(longest, device=self.lengths.device) < self.lengths[:, None]

    def lines(self, rows: Tensor) -> Tensor:
        """(total,) to (num_sequences, longest), 0 behind each sequence's end."""
        real = self.real_lines()
        return rows.new_zeros(real.shape).masked_scatter(real, rows)


def divergence(student: Tensor, teacher: Tensor, temperature: float, real: Tensor | None = None) -> Tensor:
    """KL divergence of the softmax at a temperature, times its square.

    Args:
        student, teacher: (n, classes) logits; the gradient is the student's.
        temperature: that divides both.
        real: (n, classes) bool, classes that there are; at least one a row. None: all.

    Returns:
        (n,) float32 at least.
    """
    log_own, log_taught = (
        F.log_softmax((_upcast(logits) / temperature).masked_fill(~real, -math.inf)
                      if real is not None else _upcast(logits) / temperature, -1)
        for logits in (student, teacher)
    )  # fmt: skip
    difference = log_taught - log_own
    if real is not None:  # inf - inf is NaN
        difference = torch.where(real, difference, 0.0)
    return (log_taught.exp() * difference).sum(-1) * temperature**2


def binary_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of the sigmoid at a temperature, times its square, of each element; float32 at least."""
    own, taught = _upcast(student) / temperature, _upcast(teacher) / temperature
    yes = taught.sigmoid() * (F.logsigmoid(taught) - F.logsigmoid(own))
    no = (-taught).sigmoid() * (F.logsigmoid(-taught) - F.logsigmoid(-own))
    return (yes + no) * temperature**2


def _upcast(values: Tensor) -> Tensor:
    return values.float() if values.dtype.itemsize < 4 else values


def _kind(model: Any, which: str) -> str:
    name = type(model).__name__
    for ending, kind in HEADS.items():
        if name.endswith(ending):
            return kind
    raise ValueError(f"the {which} must be a model {', '.join(HEADS)}; got {name}")

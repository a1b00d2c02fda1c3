"""Distillation: losses against formulas on each sequence alone, accumulation, what is taught and what is refused."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import families, golden_tokenizer
from helpers.pairs import NO_DROPOUT, assert_close, assert_same_gradients, make
from helpers.pairs import gradients as gradients_of
from torch import Tensor, nn

from erniem_fast.training import PackedCollator
from erniem_fast.training.distill import PROJECTIONS, Distillation, DistilledObjective
from erniem_fast.training.students import check_same_tokens, evenly_spaced, parse_layer_map, student_from

LENGTHS = (7, 3, 10, 1, 5, 6)
LABELS = {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "single": ("ForSequenceClassification", LABELS),
    "multi": ("ForSequenceClassification", LABELS | {"problem_type": "multi_label_classification"}),
    "regression": ("ForSequenceClassification", {"num_labels": 1}),
    "choices": ("ForMultipleChoice", {}),
    "tokens": ("ForTokenClassification", LABELS),
    "spans": ("ForQuestionAnswering", {}),
    "boundaries": ("ForInformationExtraction", {}),
}
"""Head and configuration of each kind of loss."""
MAP = {0: 0, 1: 2, 2: 4}


def the_rows(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    return [torch.randint(2, 100, (length,)).tolist() for length in lengths]


def features_of(kind: str, rows: list[list[int]]) -> list[dict[str, Any]]:
    """What a task gives of these sequences, with random labels."""
    if kind == "choices":
        return [{"input_ids": rows[i : i + 2], "labels": i % 2} for i in range(0, len(rows), 2)]
    labels: dict[str, Any] = {
        "single": lambda row: {"labels": len(row) % 3},
        "multi": lambda row: {"labels": torch.randint(2, (3,)).double().tolist()},
        "regression": lambda row: {"labels": float(torch.randn(()))},
        "tokens": lambda row: {"labels": [token % 3 if token > 30 else -100 for token in row]},
        "spans": lambda row: {"start_positions": len(row) // 2, "end_positions": len(row) - 1},
        "boundaries": lambda row: {f"{name}_positions": torch.rand(len(row)).tolist() for name in ("start", "end")},
    }
    return [{"input_ids": row} | labels[kind](row) for row in rows]


def a_pair(kind: str, teacher_size: int = 32, **changes: Any) -> tuple[Any, Any, Any, Any]:
    """Student of 2 layers and teacher of 4, each as the reference and as the padding-free model."""
    head, config = KINDS[kind]
    settings = config | NO_DROPOUT | changes
    return (
        *make(f"ErnieM{head}", noise=0.2, **settings),
        *make(f"ErnieM{head}", noise=0.2, num_hidden_layers=4, hidden_size=teacher_size, **settings),
    )


def head_loss(model: Any, batch: dict[str, Any], num_items: Any) -> tuple[Tensor, Any]:
    outputs = model(**batch, num_items_in_batch=num_items)
    return outputs.loss, outputs


def soft(own: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """KL divergence of one softmax, as it is defined."""
    p, q = (taught / temperature).softmax(-1), (own / temperature).softmax(-1)
    return (p * (p.log() - q.log())).sum() * temperature**2


def binary(own: Tensor, taught: Tensor, temperature: float) -> Tensor:
    p, q = (taught / temperature).sigmoid(), (own / temperature).sigmoid()
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()) * temperature**2


def by_hand(
    kind: str, student: Any, teacher: Any, rows: list[list[int]], temperature: float, projections: Any = None,
    layer_map: dict[int, int] = MAP,
) -> Tensor:  # fmt: skip
    """The teacher's part of the loss: the reference on each sequence alone, and the formulas of the docstring."""
    of_items: list[Tensor] = []
    of_tokens: list[Tensor] = []
    scores: list[tuple[Tensor, Tensor]] = []
    for row in rows:
        ids = torch.tensor([row])
        inputs = ids[None] if kind == "choices" else ids
        own = student(inputs, output_hidden_states=True)
        with torch.no_grad():
            taught = teacher(inputs, output_hidden_states=True)
        if kind == "choices":
            scores.append((own.logits[0, 0], taught.logits[0, 0]))
        elif kind == "single":
            of_items.append(soft(own.logits[0], taught.logits[0], temperature))
        elif kind == "multi":
            of_items += list(binary(own.logits[0], taught.logits[0], temperature))
        elif kind == "regression":
            of_items.append((own.logits - taught.logits).square().sum())
        elif kind == "tokens":
            of_items += [soft(own.logits[0, i], taught.logits[0, i], temperature) for i in range(len(row))]
        else:
            names = ("start_logits", "end_logits")
            if kind == "spans":
                parts = [soft(own[name][0], taught[name][0], temperature) for name in names]
            else:
                parts = [binary(own[name][0], taught[name][0], temperature).mean() for name in names]
            of_items.append((parts[0] + parts[1]) / 2)
        for position in range(len(row)):
            total = torch.zeros((), dtype=torch.float64)
            for layer, other in layer_map.items():
                state = own.hidden_states[layer][0, position]
                state = state if projections is None else projections[str(layer)](state)
                total = total + (state - taught.hidden_states[other][0, position]).square().mean()
            of_tokens.append(total)
    for first, second in zip(scores[::2], scores[1::2], strict=True):
        own_scores, taught_scores = (torch.stack(pair) for pair in zip(first, second, strict=True))
        of_items.append(soft(own_scores, taught_scores, temperature))
    return torch.stack(of_items).mean() + torch.stack(of_tokens).mean()


def padded(rows: list[list[int]], choices: bool) -> dict[str, Tensor]:
    """The sequences as a padded batch, every other padded on the left."""
    longest = max(map(len, rows))
    ids = torch.ones(len(rows), longest, dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
    shape = (-1, 2, longest) if choices else ids.shape
    return {"input_ids": ids.view(shape), "attention_mask": (ids != 1).long().view(shape)}


@pytest.mark.parametrize("kind", ["single", "spans", *(pytest.param(one, marks=pytest.mark.slow) for one in KINDS
                                                      if one not in ("single", "spans"))])  # fmt: skip
def test_loss_and_gradients_are_those_of_each_sequence_alone(kind: str) -> None:
    plain, student, plain_teacher, teacher = a_pair(kind)
    rows, temperature, weight = the_rows(), 1.7, 0.3
    distillation = Distillation(teacher, student, temperature=temperature, weight=weight, layer_map=MAP)
    packed = PackedCollator()(features_of(kind, rows))
    bare = {name: value for name, value in packed.items() if name != "padded_shape"}
    layouts = [packed, padded(rows, kind == "choices")]
    if kind != "choices":
        layouts.append({name: value for name, value in bare.items() if "label" not in name and "positions" not in name})
    expected = by_hand(kind, plain, plain_teacher, rows, temperature)
    (weight * expected).backward()
    for inputs in layouts:
        student.zero_grad()
        lesson = distillation.teach({name: value for name, value in inputs.items() if name not in
                                     ("labels", "start_positions", "end_positions")})  # fmt: skip
        loss = lesson.loss(None, student(**lesson.inputs))
        assert_close(loss / weight, expected, 1e-10)
        loss.backward()
        assert_same_gradients(student, plain, 1e-8)
    lesson = distillation.teach(packed)
    outputs = student(**lesson.inputs)
    assert_close(lesson.loss(outputs.loss, outputs), (1 - weight) * outputs.loss + weight * expected, 1e-10)
    assert not gradients_of(teacher)


@pytest.mark.parametrize("kind", ["tokens", *(pytest.param(one, marks=pytest.mark.slow) for one in KINDS
                                              if one != "tokens")])  # fmt: skip
def test_accumulated_batches_are_worth_the_joined_one(kind: str) -> None:
    _, student, _, teacher = a_pair(kind)
    distillation = Distillation(teacher, student, layer_map=MAP)
    features = features_of(kind, the_rows())
    collator = PackedCollator()
    whole = distillation.teach(collator(features))
    expected = whole.loss(None, student(**whole.inputs))
    expected.backward()
    joined = copy.deepcopy(student)
    for name, parameter in student.named_parameters():
        joined.get_parameter(name).grad = None if parameter.grad is None else parameter.grad.clone()
    student.zero_grad()
    batches = [collator(features[:1]), collator(features[1:])]
    counts = sum(distillation.counts(batch) for batch in batches)
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        lesson = distillation.teach(batch)
        loss = lesson.loss(None, student(**lesson.inputs), counts)
        loss.backward()
        total += loss.detach()
    assert_close(total, expected, 1e-12)
    assert_same_gradients(student, joined, 1e-10)


def test_the_teacher_is_asked_once_and_never_learns() -> None:
    _, student, _, teacher = a_pair("single", hidden_dropout_prob=0.5)
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    calls: list[Any] = []
    distillation = Distillation(teacher, student.train(), layer_map={1: 2})
    teacher.register_forward_hook(lambda *_: calls.append(None))
    batch = PackedCollator()(features_of("single", the_rows()))
    lessons = [distillation.teach(batch) for _ in range(2)]
    assert len(calls) == 2
    assert torch.equal(lessons[0].logits["logits"], lessons[1].logits["logits"]), "dropout is on"
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    lessons[0].loss(None, student(**lessons[0].inputs)).backward()
    optimizer.step()
    assert not gradients_of(teacher)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.slow
def test_learning_makes_the_student_agree() -> None:
    _, student, _, teacher = a_pair("single")
    student, teacher = student.float().train(), teacher.float()
    distillation = Distillation(teacher, student, weight=1.0, layer_map={2: 4})
    batch = PackedCollator()(features_of("single", the_rows()))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        lesson = distillation.teach(batch)
        loss = lesson.loss(None, student(**lesson.inputs))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


def test_projections_learn_and_go() -> None:
    plain, student, plain_teacher, teacher = a_pair("single", teacher_size=48)
    names = set(student.state_dict())
    distillation = Distillation(teacher, student, weight=1.0, layer_map={1: 3})
    projections = student.get_submodule(PROJECTIONS)
    assert [tuple(one.weight.shape) for one in projections.children()] == [(48, 32)]
    rows = the_rows()
    lesson = distillation.teach(PackedCollator()(features_of("single", rows)))
    loss = lesson.loss(None, student(**lesson.inputs))
    expected = by_hand("single", plain, plain_teacher, rows, 2.0, projections, {1: 3})
    assert_close(loss, expected, 1e-10)
    loss.backward()
    assert all(parameter.grad is not None for parameter in projections.parameters())
    distillation.finish()
    assert set(student.state_dict()) == names


@pytest.mark.parametrize("kind", ["multi", "regression"])
def test_a_sample_without_numbers_takes_the_teachers(kind: str) -> None:
    _, student, _, teacher = a_pair(kind)
    features = features_of(kind, the_rows())
    ignored = [-100.0] * 3 if kind == "multi" else -100.0
    features[1]["labels"] = ignored
    lesson = Distillation(teacher, student).teach(PackedCollator()(features))
    logits = lesson.logits["logits"]
    answers = logits.sigmoid() if kind == "multi" else logits[:, 0]
    given = torch.tensor([feature["labels"] for feature in features])
    assert_close(lesson.inputs["labels"][1], answers[1], 1e-6)
    assert torch.equal(lesson.inputs["labels"][2:], given[2:].to(torch.float32))


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_the_objective_accumulates_samples_with_and_without_labels(kind: str) -> None:
    _, student, _, teacher = a_pair(kind)
    distillation = Distillation(teacher, student.train(), weight=0.4, layer_map={1: 2})
    objective = DistilledObjective(distillation, head_loss)
    features = features_of(kind, the_rows())
    for index in (1, 2, 3):
        features[index]["labels"] = -100 if kind == "single" else [-100.0] * 3
    collator = PackedCollator()
    expected, _ = objective(student, collator(features), None)
    batches = [collator(features[:1]), collator(features[1:4]), collator(features[4:])]  # the second has no label
    counts = [objective.count_items(batch, (batch["labels"] != -100).sum()) for batch in batches]
    assert [int(one[0]) for one in counts] == ([1, 0, 2] if kind == "single" else [3, 9, 6])
    losses = [objective(student, batch, torch.stack(counts).sum(0))[0] for batch in batches]
    assert_close(torch.stack(losses).sum(), expected, 1e-12)
    if kind == "single":
        student.eval()
        whole, outputs = objective(student, collator(features), None)
        assert_close(whole, F.cross_entropy(outputs.logits[[0, 4, 5]], collator(features)["labels"][[0, 4, 5]]), 1e-12)
        assert outputs.hidden_states is None


def test_a_teacher_of_another_family_gets_its_own_positions() -> None:
    """RoBERTa's positions start behind the pad id; it takes token types, which ErnieM doesn't."""
    _, student, _, _ = a_pair("single")
    plain, teacher = families.make("xlm-roberta", "ForSequenceClassification", **LABELS)
    distillation = Distillation(teacher, student, layer_map={1: 1})
    rows = [[token % 50 + 5 for token in row] for row in the_rows()]
    lesson = distillation.teach(PackedCollator()([{"input_ids": row, "labels": 0} for row in rows]))
    expected = torch.cat([plain(torch.tensor([row])).logits for row in rows])
    assert_close(lesson.logits["logits"], expected, 1e-10)
    # The other way round, with ids that ErnieM has no table for.
    other = families.make("xlm-roberta", "ForSequenceClassification", **LABELS)[1]
    ernie_m, fast = make("ErnieMForSequenceClassification", **LABELS)
    features = [{"input_ids": row, "token_type_ids": [0] * len(row), "labels": 0} for row in rows]
    lesson = Distillation(fast, other).teach(PackedCollator.for_model(other)(features))
    assert_close(lesson.logits["logits"], torch.cat([ernie_m(torch.tensor([row])).logits for row in rows]), 1e-10)


def test_a_plain_teacher_of_another_dtype_is_made_padding_free() -> None:
    _, student, _, _ = a_pair("single")
    teacher = families.make_plain("bert", "ForSequenceClassification", **LABELS).to(torch.bfloat16)
    distillation = Distillation(teacher, student.float())
    rows = [[token % 50 + 5 for token in row] for row in the_rows()]
    lesson = distillation.teach(PackedCollator()([{"input_ids": row, "labels": 0} for row in rows]))
    assert lesson.logits["logits"].dtype == torch.bfloat16
    loss = lesson.loss(None, student(**lesson.inputs))
    assert loss.dtype == torch.float32
    assert loss.isfinite()


# What is refused


def test_what_does_not_match_is_refused() -> None:
    _, student, _, teacher = a_pair("single")
    tagger = a_pair("tokens")[1]
    with pytest.raises(
        ValueError, match="must be the student's, got a ErnieMForTokenClassification and a ErnieMForSeq"
    ):
        Distillation(tagger, student)
    with pytest.raises(ValueError, match=r"the student must be a model ForSequenceClassification, .*; got ErnieMModel"):
        Distillation(teacher, make("ErnieMModel")[1])
    other = make("ErnieMForSequenceClassification", num_labels=2)[1]
    with pytest.raises(ValueError, match=r"the student has 3 \(a, b, c\), the teacher 2 \(LABEL_0, LABEL_1\)"):
        Distillation(other, student)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature must be above 0, got"):
            Distillation(teacher, student, temperature=temperature)
    with pytest.raises(ValueError, match=r"weight must lie in \[0, 1\], got 1.5"):
        Distillation(teacher, student, weight=1.5)
    with pytest.raises(ValueError, match=r"to 2 of the student to layers 0 to 4 of the teacher, got 3:4"):
        Distillation(teacher, student, layer_map={3: 4})


def test_layer_maps() -> None:
    assert parse_layer_map("1:2, 2:4") == {1: 2, 2: 4}
    for text in ("", "1", "1:2,", "a:b", "1:-2"):
        with pytest.raises(ValueError, match=r"layer map must read like 1:2,2:4"):
            parse_layer_map(text)
    with pytest.raises(ValueError, match="got 1 twice"):
        parse_layer_map("1:2,1:3")
    assert evenly_spaced(2, 4) == {1: 2, 2: 4}
    assert evenly_spaced(3, 12) == {1: 4, 2: 8, 3: 12}
    assert evenly_spaced(4, 4) == {1: 1, 2: 2, 3: 3, 4: 4}
    assert list(evenly_spaced(5, 12).values()) == [2, 5, 7, 10, 12]
    for layers in (0, 5):
        with pytest.raises(ValueError, match=r"layers must lie in \[1, 4\], the teacher's layers, got"):
            evenly_spaced(layers, 4)


# Students


def test_a_student_has_every_second_layer() -> None:
    pruned = {1: [0, 2], 2: [1]}
    plain, teacher = make("ErnieMForSequenceClassification", num_hidden_layers=4, pruned_heads=pruned, **LABELS)
    student = student_from(teacher, 2)
    assert student.training
    assert type(student) is type(teacher)
    assert student.config.pruned_heads == {0: [0, 2]}, "of the teacher's layer 2"
    assert teacher.config.num_hidden_layers == 4
    # The oracle: the reference with those layers only.
    layers = plain.ernie_m.encoder.layers
    plain.ernie_m.encoder.layers = nn.ModuleList([layers[1], layers[3]])
    plain.config.num_hidden_layers = 2
    row = torch.tensor(the_rows()[:1])
    assert_close(student.eval()(row).logits, plain(row).logits, 1e-12)
    with torch.no_grad():
        student.classifier.weight.add_(1)
    assert not torch.equal(student.classifier.weight, teacher.classifier.weight)
    with pytest.raises(TypeError, match="teacher must be a PreTrainedModel"):
        student_from(nn.Linear(2, 2), 1)  # type: ignore[type-var]


@pytest.mark.slow
@pytest.mark.parametrize("family", families.FAMILIES)
def test_students_of_every_family(family: str) -> None:
    layers = "n_layers" if family.endswith(("xlm", "distilbert")) else "num_hidden_layers"
    head = "ForTokenClassification"
    plain, teacher = families.make(family, head, **{layers: 4}, **families.NO_DROPOUT, **LABELS)
    row = torch.tensor([[5, 9, 13, 7, 11, 8]])
    teacher.requires_grad_(False)
    for source in (plain, teacher):
        same, student = student_from(source, 4).eval(), student_from(source, 2)
        assert_close(same(row).logits, teacher(row).logits, 1e-12)
        assert len(student(row, output_hidden_states=True).hidden_states) == 3
        assert all(parameter.requires_grad for parameter in student.parameters())
    # Both read the same embeddings, and the student's last layer, given the same rows, does what the teacher's does.
    own = student_from(teacher, 2).eval()
    states = [model(row, output_hidden_states=True).hidden_states for model in (own, teacher)]
    assert_close(states[0][0], states[1][0], 1e-12)
    names = [name for name in own.state_dict() if ".1." in name]
    assert names
    for name in names:
        assert torch.equal(own.state_dict()[name], teacher.state_dict()[name.replace(".1.", ".3.", 1)]), name
    if "causal" in family:
        return
    distillation = Distillation(teacher, student := student_from(teacher, 2), layer_map={1: 2, 2: 4})
    batch = PackedCollator.for_model(student)([{"input_ids": [5, 9, 13], "labels": [0, 1, 2]}] * 2)
    lesson = distillation.teach(batch)
    lesson.loss(None, student(**lesson.inputs)).backward()
    assert gradients_of(student)


def test_tokenizers_must_be_the_same() -> None:
    own, same = golden_tokenizer.build(), golden_tokenizer.build()
    check_same_tokens(own, same)
    lower = golden_tokenizer.build(do_lower_case=True)
    with pytest.raises(ValueError, match="vocabularies are the same, but they split text differently"):
        check_same_tokens(own, lower)
    same.add_tokens(["<new>"])
    same.name_or_path = "the/teacher"
    with pytest.raises(ValueError, match=r"teacher \(the/teacher\) and the student \(.*'<new>' has 16002 and none"):
        check_same_tokens(own, same)

"""transformers' Trainer, unmodified, on packed and on padded batches: accumulation, mixed precision, compilation."""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import families
from helpers.pairs import CLASSES, NO_DROPOUT, as_reference, batch, gradients, labels_for, make
from helpers.samples import samples_of
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from erniem_fast.training import PackedCollator, compute_loss_func

HEADS = CLASSES[1:]
QUICK = "ErnieMForTokenClassification"
EACH_HEAD = [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in HEADS]
NUM_LABELS = 3
Collate = Callable[[list[Any]], dict[str, Any]]


def labels_of(name: str) -> dict[str, int]:
    return {} if "Question" in name or "Extraction" in name else {"num_labels": NUM_LABELS}


def padded(name: str, samples: int = 32) -> dict[str, Tensor]:
    """Samples of uneven lengths, of which some have many labels and some one."""
    lengths = [1 + int(length) for length in torch.randint(2, 12, (samples,))]
    inputs = batch((*lengths[:-1], 13))
    if name == "ErnieMForMultipleChoice":
        other = batch((*lengths[1:], 13))
        choices = {key: torch.stack((value, other[key]), 1) for key, value in inputs.items()}
        return choices | {"labels": torch.randint(2, (samples,))}
    inputs |= labels_for(name, inputs, NUM_LABELS)
    if "labels" in inputs and inputs["labels"].dim() == 2:
        inputs["labels"][samples // 4 :, 1:] = -100  # the first of four parts has most labels
    return inputs


def data_of(inputs: dict[str, Tensor], kind: str) -> tuple[list[Any], Collate]:
    """Samples with the collator of their kind."""
    if kind == "packed":
        return samples_of(inputs), PackedCollator()
    rows = len(next(iter(inputs.values())))
    return [{key: value[row] for key, value in inputs.items()} for row in range(rows)], default_data_collator


class Gradients(TrainerCallback):
    """Keeps the gradients of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *args: Any, model: Any, **options: Any) -> None:
        self.steps.append({key: value.clone() for key, value in gradients(model).items()})


def train(
    model: Any, folder: Path, data: list[Any], collate: Collate, loss: Any = None, **options: Any
) -> tuple[list[dict[str, Tensor]], list[float]]:
    """Gradients and losses of each step."""
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], save_strategy="no", logging_steps=1, max_grad_norm=0.0, seed=7,
        disable_tqdm=True, learning_rate=1e-3, **options,
    )  # fmt: skip
    kept = Gradients()
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=collate, callbacks=[kept],
                      compute_loss_func=loss)  # fmt: skip
    trainer.train()
    return kept.steps, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Gradients are equal, relative to the largest of each parameter, or to 1e-3 of the largest of all."""
    assert found.keys() == expected.keys()
    least = 1e-3 * max(float(grad.abs().max()) for grad in expected.values())
    for key, grad in expected.items():
        error = float((found[key] - grad).abs().max()) / max(float(grad.abs().max()), least)
        assert error < tolerance, f"{key}: {error}"


@pytest.mark.parametrize("kind", ["packed", pytest.param("padded", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EACH_HEAD)
def test_accumulated_batches_have_the_gradients_of_one(tmp_path: Path, name: str, kind: str) -> None:
    """1 x 32, 4 x 8 with uneven numbers of labels, and the loss of the 32 samples without Trainer."""
    _, model = make(name, **labels_of(name), **NO_DROPOUT)
    inputs = padded(name)
    model.train()(**inputs).loss.backward()
    expected = {key: value.clone() for key, value in gradients(model).items()}
    model.zero_grad()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    data, collate = data_of(inputs, kind)
    for batches in (1, 4):
        model.load_state_dict(state)
        (found,), _ = train(
            model, tmp_path, data, collate, per_device_train_batch_size=32 // batches,
            gradient_accumulation_steps=batches, max_steps=1,
        )  # fmt: skip
        assert_same(found, expected)
        model.zero_grad()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "distilbert"])
@pytest.mark.parametrize("head", ["ForTokenClassification", "ForSequenceClassification"])
def test_other_families_accumulate_by_the_loss_function(tmp_path: Path, family: str, head: str) -> None:
    """Without it they give a mean of means."""
    _, model = families.make(family, head, **families.NO_DROPOUT)
    parts = [families.batch(family) for _ in range(4)]
    width = max(part["input_ids"].shape[1] for part in parts)
    assert all(part["input_ids"].shape[1] == width for part in parts)
    inputs = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    inputs |= families.labels_for(family, head, inputs)
    if head == "ForTokenClassification":
        inputs["labels"][4:, 1:] = -100
    model.train()(**inputs).loss.backward()
    expected = {key: value.clone() for key, value in gradients(model).items()}
    model.zero_grad()
    (found,), _ = train(
        model, tmp_path, samples_of(inputs), PackedCollator.for_model(model), compute_loss_func(),
        per_device_train_batch_size=4, gradient_accumulation_steps=len(inputs["labels"]) // 4, max_steps=1,
    )  # fmt: skip
    assert_same(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_evaluation_gives_a_row_a_sample(tmp_path: Path, name: str) -> None:
    """Predictions and loss of packed batches are those of padded ones, batch for batch."""
    _, model = make(name, **labels_of(name))
    inputs = padded(name)
    names = ["labels"] if "labels" in inputs else ["start_positions", "end_positions"]
    found = {}
    for kind in ("packed", "padded"):
        data, collate = data_of(inputs, kind)
        arguments = TrainingArguments(
            str(tmp_path),
            use_cpu=True,
            report_to=[],
            per_device_eval_batch_size=8,
            disable_tqdm=True,
            label_names=names,
        )
        found[kind] = Trainer(model, arguments, data_collator=collate).predict(data)
    packed, expected = found["packed"], found["padded"]
    mask = inputs["attention_mask"].bool()
    outputs = [one if isinstance(one, tuple) else (one,) for one in (packed.predictions, expected.predictions)]
    for one, two in zip(*outputs, strict=True):
        one, two = torch.from_numpy(one), torch.from_numpy(two)
        assert len(one) == len(two) == 32
        if one.shape[: mask.dim()] == mask.shape:
            one, two = one[mask], two[mask]
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    assert packed.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EACH_HEAD)
def test_mixed_precision_with_loss_scaling(name: str, dtype: torch.dtype) -> None:
    """Gradients err at most twice as much as those of the reference, each row padded; what overflows is not applied."""
    exact, model = make(name, **labels_of(name), **NO_DROPOUT)
    inputs = padded(name, 24)  # of a few samples either may be near by chance
    samples = samples_of(inputs)
    plain, model = as_reference(model).float(), model.float()
    items = int((inputs["labels"] != -100).sum()) if "labels" in inputs else len(samples)
    for index in range(len(samples)):  # rows alone, as the padding-free model has them
        row = {key: value[index : index + 1] for key, value in inputs.items()}
        longest = int(row["attention_mask"].sum(-1).max())
        row = {key: value[..., :longest] if value.dim() > 1 else value for key, value in row.items()}
        exact.train()(**row, num_items_in_batch=items).loss.backward()
        with torch.autocast("cpu", dtype=dtype):
            loss = plain.train()(**row, num_items_in_batch=items).loss
        loss.backward()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    sgd = torch.optim.SGD(model.train().parameters(), lr=0.1)
    with torch.autocast("cpu", dtype=dtype):
        loss = model(**PackedCollator()(samples)).loss
    scaler.scale(loss).backward()
    scaler.unscale_(sgd)
    errors = []
    for one in (model, plain):
        pairs = [(gradients(one)[key].double(), grad) for key, grad in gradients(exact).items()]
        errors.append(sum(float((found - grad).square().sum()) for found, grad in pairs) ** 0.5)
    assert 0 < errors[0] <= 2 * errors[1]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scaler.step(sgd)
    scaler.update()
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sgd.zero_grad()
    with torch.autocast("cpu", dtype=dtype):
        loss = model(**PackedCollator()(samples)).loss
    scaler.scale(loss * torch.inf).backward()
    scaler.step(sgd)
    scaler.update()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert scaler.get_scale() == 2.0**9


@pytest.mark.slow
def test_trainer_in_bfloat16(tmp_path: Path) -> None:
    plain, model = make(QUICK, torch.float32, **labels_of(QUICK), **NO_DROPOUT)
    data, collate = data_of(padded(QUICK), "packed")
    options = {"per_device_train_batch_size": 8, "max_steps": 8}
    _, expected = train(make_copy(model, plain), tmp_path, data, collate, **options)
    _, found = train(model, tmp_path, data, collate, bf16=True, **options)
    assert found != expected
    assert found == pytest.approx(expected, rel=0.03)


def make_copy(model: Any, plain: Any) -> Any:
    """A model with the same parameters."""
    copied = type(model)(model.config).to(model.dtype)
    copied.load_state_dict(plain.state_dict())
    return copied


@pytest.mark.parametrize("name", EACH_HEAD)
def test_checkpointed_activations_change_nothing(tmp_path: Path, name: str) -> None:
    """Gradients with dropout, bit for bit, through Trainer."""
    plain, model = make(name, **labels_of(name))
    data, collate = data_of(padded(name, 8), "packed")
    options = {"per_device_train_batch_size": 4, "max_steps": 2}
    found, _ = train(make_copy(model, plain), tmp_path, data, collate, gradient_checkpointing=True, **options)
    expected, _ = train(model, tmp_path, data, collate, **options)
    assert len(found) == 2
    for one, two in zip(found, expected, strict=True):
        assert all(torch.equal(one[key], grad) for key, grad in two.items())


@pytest.mark.slow
def test_trainer_compiles_once_for_all_batches(tmp_path: Path) -> None:
    """`torch_compile=True` on packed batches of many sizes: the losses of the model as it is. Prints what it takes."""
    plain, model = make(QUICK, torch.float32, **labels_of(QUICK), **NO_DROPOUT)
    data, collate = data_of(padded(QUICK, 64), "packed")
    options = {"per_device_train_batch_size": 8, "max_steps": 8}
    _, expected = train(make_copy(model, plain), tmp_path, data, collate, **options)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    times = [time.perf_counter()]

    def timed(features: list[Any]) -> dict[str, Any]:
        times.append(time.perf_counter())
        return collate(features)

    _, found = train(model, tmp_path, data, timed, torch_compile=True, **options)
    steps = [later - earlier for earlier, later in pairwise(times[1:])]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    print(f"\nsteps of {[round(step, 2) for step in steps]} s, {graphs} graphs")
    assert found == pytest.approx(expected, rel=1e-3)  # Trainer rounds what it logs
    assert 1 <= graphs <= 4
    torch._dynamo.reset()

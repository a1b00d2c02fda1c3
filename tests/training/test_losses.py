"""Losses of the heads: positions that count, labels that are refused, parameters that get a gradient."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.pairs import CLASSES, NO_DROPOUT, assert_close, batch, gradients, labels_for, make
from helpers.paths import ROOT
from helpers.processes import PATIENCE
from torch import Tensor

from erniem_fast import PackedBatch, reference

HEADS = CLASSES[1:]


def labelled(name: str, num_labels: int = 2) -> dict[str, Tensor]:
    """Padded batch with labels, in the shapes of the head."""
    inputs = batch()
    if name != "ErnieMForMultipleChoice":
        return inputs | labels_for(name, inputs, num_labels)
    return {key: value[None] for key, value in inputs.items()} | {"labels": torch.tensor([2])}


def both(name: str, **changes: Any) -> dict[str, Any]:
    return dict(zip(("reference", "fast"), make(name, **changes), strict=True))


# Positions that count


@pytest.mark.parametrize("which", ["reference", "fast"])
@pytest.mark.parametrize("name", HEADS)
def test_nan_logits_give_a_nan_loss(name: str, which: str) -> None:
    model = both(name)[which]
    inputs = labelled(name)
    assert model(**inputs).loss.isfinite()
    # The last parameters belong to the head.
    with torch.no_grad():
        list(model.parameters())[-1].fill_(torch.nan)
    assert model(**inputs).loss.isnan()


@pytest.mark.parametrize("which", ["reference", "fast"])
def test_nan_at_an_answer_or_at_another_token_gives_a_nan_loss(which: str) -> None:
    model = both("ErnieMForQuestionAnswering")[which]
    inputs = batch((6, 4))
    answers = torch.tensor([3, 2])
    for row, column in ((0, 3), (1, 0)):
        place = [0, 6][row] + column if which == "fast" else (row, column)

        def poison(*args: Any, place: Any = place) -> Tensor:
            logits = args[2].clone()
            logits[place] = torch.nan
            return logits

        handle = model.qa_outputs.register_forward_hook(poison)
        assert model(**inputs, start_positions=answers, end_positions=answers).loss.isnan()
        handle.remove()


def test_an_answer_at_padding_counts_in_the_reference_only() -> None:
    """The reference scores padding like any token, as 4.40.2 does; the padding-free model has no such token."""
    plain, fast = make("ErnieMForQuestionAnswering")
    inputs = batch((6, 4))
    answers = torch.tensor([3, 5])  # the second row has 4 tokens
    output = plain(**inputs, start_positions=answers, end_positions=answers)
    rows = [F.log_softmax(scores, -1) for scores in (output.start_logits, output.end_logits)]
    assert_close(output.loss, -torch.stack([row.gather(1, answers[:, None]) for row in rows]).mean())
    found = fast(**inputs, start_positions=answers, end_positions=answers).loss
    alone = fast(**{key: value[:1] for key, value in inputs.items()}, start_positions=answers[:1],
                 end_positions=answers[:1]).loss  # fmt: skip
    assert_close(found, alone)
    nowhere = torch.tensor([-1, 5])
    loss = fast(**inputs, start_positions=nowhere, end_positions=nowhere).loss
    assert loss == 0
    loss.backward()
    assert not any(grad.any() for grad in gradients(fast).values())


def test_an_answer_whose_score_is_the_dtypes_minimum_counts() -> None:
    for model in make("ErnieMForQuestionAnswering", **NO_DROPOUT):
        with torch.no_grad():
            model.qa_outputs.weight.zero_()
            model.qa_outputs.bias.fill_(torch.finfo(torch.float64).min)
        inputs = batch((5, 5))
        answers = torch.tensor([1, 4])
        loss = model(**inputs, start_positions=answers, end_positions=answers).loss
        assert_close(loss, torch.tensor(5.0).log())


# Labels that are refused

BAD_LABELS = {
    "list": lambda good: good.tolist(),
    "array": lambda good: good.numpy(),
    "complex": lambda good: good.to(torch.complex64),
    "sparse": lambda good: good.to_sparse(),
    "nested": lambda good: torch.nested.nested_tensor([good.flatten(), good.flatten()[:1]]),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
@pytest.mark.parametrize("name", HEADS)
def test_labels_of_a_wrong_type_are_refused_by_name(name: str, kind: str) -> None:
    for model in make(name):
        inputs = labelled(name)
        for argument in inputs.keys() - {"input_ids", "attention_mask"}:
            with pytest.raises(TypeError, match=f"^{argument} must be"):
                model(**inputs | {argument: BAD_LABELS[kind](inputs[argument])})


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", "single_label_classification"])
@pytest.mark.parametrize("kind", BAD_LABELS)
def test_labels_of_every_problem_type_are_checked(problem: str, kind: str) -> None:
    for model in make("ErnieMForSequenceClassification", problem_type=problem, num_labels=3):
        inputs = batch()
        labels = torch.randint(2, (4,)) if problem == "single_label_classification" else torch.rand(4, 3)
        assert model(**inputs, labels=labels).loss.isfinite()
        with pytest.raises(TypeError, match=r"^labels must be"):
            model(**inputs, labels=BAD_LABELS[kind](labels))


@pytest.mark.parametrize("name", ["ErnieMForQuestionAnswering", "ErnieMForMaskedLM", "ErnieMForMultipleChoice"])
def test_class_labels_must_be_integers(name: str) -> None:
    for model in make(name):
        inputs = labelled(name)
        for argument in inputs.keys() - {"input_ids", "attention_mask"}:
            with pytest.raises(TypeError, match=f"{argument} must be int64 or int32, got torch.float32"):
                model(**inputs | {argument: inputs[argument].float()})


def test_multiple_choice_refuses_packed_input_without_its_shape() -> None:
    _, model = make("ErnieMForMultipleChoice")
    sequences = [[0, 5, 2], [0, 7, 8, 2], [0, 2]]
    packed = PackedBatch.from_sequences(sequences)
    with pytest.raises(ValueError, match=r"input_ids must be a padded tensor of shape .*, got a PackedBatch"):
        model(packed)
    for shape in (None, (3, 4)):
        with pytest.raises(
            ValueError, match=r"padded_shape must be \(batch, num_choices, seq_len\) with cu_seq_lens_q"
        ):
            model(packed.input_ids[None], cu_seq_lens_q=packed.cu_seqlens, padded_shape=shape)
    # Positions that restart make a lone row a packed one, too.
    ids, positions = packed.input_ids[None, None], packed.position_ids[None, None]
    for inputs in (
        {"input_ids": ids},
        {"inputs_embeds": model.ernie_m.embeddings.word_embeddings(ids)},
    ):
        (name,) = inputs
        with pytest.raises(ValueError, match=rf"{name} must hold one sequence a choice, 1 in all.* got 3 sequences"):
            model(**inputs, position_ids=positions)


# Gradients


@pytest.mark.parametrize("name", [*HEADS, "untied ErnieMForMaskedLM"])
def test_every_trainable_parameter_gets_a_gradient(tmp_path: Path, name: str) -> None:
    """Plain DDP waits for each of them; loading replaces the parameters and must keep them frozen."""
    changes = {"tie_word_embeddings": False} if name.startswith("untied") else {}
    name = name.split()[-1]
    plain, fast = make(name, **changes)
    fast.save_pretrained(tmp_path)
    loaded = type(fast).from_pretrained(tmp_path)
    for model in (plain, fast, loaded):
        model.train()(**labelled(name)).loss.backward()
        trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
        assert gradients(model).keys() == trainable
        frozen = {key for key, _ in model.named_parameters()} - trainable
        assert frozen == {
            "ErnieMForInformationExtraction": {"ernie_m.pooler.dense.weight", "ernie_m.pooler.dense.bias"},
            "ErnieMForMaskedLM": {"lm_head.bias"} if changes else set(),
        }.get(name, set())


def test_a_frozen_pooler_may_be_trained_and_is_saved(tmp_path: Path) -> None:
    plain, fast = make("ErnieMForInformationExtraction")
    for model in (plain, fast):
        model.requires_grad_(True)
        inputs = batch()
        model.ernie_m(**inputs).pooler_output.sum().backward()
        assert model.ernie_m.pooler.dense.weight.grad.any()
    fast.save_pretrained(tmp_path)
    again = reference.ErnieMForInformationExtraction.from_pretrained(tmp_path)
    assert torch.equal(again.ernie_m.pooler.dense.weight, plain.ernie_m.pooler.dense.weight)


WORKER = """
import copy, sys
import torch
import torch.nn.functional as F
from helpers.pairs import CLASSES, NO_DROPOUT, batch, labels_for, make
from erniem_fast.training import end_process_group
rank = int(sys.argv[1])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
for name in CLASSES[1:]:
    torch.manual_seed(4)
    for model in make(name, **NO_DROPOUT):
        inputs = batch((6, 6, 6, 6))
        inputs |= labels_for(name, inputs)
        if name == "ErnieMForMultipleChoice":
            inputs = {key: value.unflatten(0, (2, 2)) for key, value in inputs.items()}
            inputs["labels"] = torch.tensor([1, 0])
        alone = copy.deepcopy(model).train()
        alone(**inputs).loss.backward()
        part = {key: value.chunk(2)[rank] for key, value in inputs.items()}
        parallel = torch.nn.parallel.DistributedDataParallel(model.train())
        for _ in range(2):  # a missing gradient is reported by the second forward
            model.zero_grad(set_to_none=True)
            parallel(**part).loss.backward()
        for (key, found), expected in zip(model.named_parameters(), alone.parameters()):
            if not expected.requires_grad:
                assert found.grad is None, key
            # A mean over tokens differs from the mean of two processes' means.
            elif name != "ErnieMForMaskedLM":
                torch.testing.assert_close(found.grad, expected.grad, rtol=1e-6, atol=1e-6)
del parallel
end_process_group()
print("all heads trained")
"""


@pytest.mark.slow
def test_plain_ddp_of_two_processes(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WORKER), str(rank), str(tmp_path / "store")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [worker.communicate(timeout=PATIENCE)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert all("all heads trained" in text for text in said), "\n".join(said)

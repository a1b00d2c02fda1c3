"""Train with FSDP2's fully_shard, and compare with one process on the joined batch."""

import copy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers import families
from helpers.pairs import NO_DROPOUT, batch, labels_for, make
from helpers.samples import Sample, samples_of
from helpers.trained import LEARNING_RATE, plain_steps
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from erniem_fast.training import PackedCollator, compute_loss_func

HEADS = [
    ("ernie-m", "ForTokenClassification"), ("ernie-m", "ForMaskedLM"), ("ernie-m", "ForSequenceClassification"),
    ("bert", "ForTokenClassification"), ("distilbert", "ForMaskedLM"), ("xlm-roberta", "ForSequenceClassification"),
    ("xlm", "ForTokenClassification"),
]  # fmt: skip


def make_one(family: str, head: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model and a padded batch, the first sample of which has one label."""
    if family == "ernie-m":
        _, model = make(f"ErnieM{head}", **NO_DROPOUT)
        inputs = batch((9, 3, 5, 2))
        inputs |= labels_for(f"ErnieM{head}", inputs)
    else:
        _, model = families.make(family, head, **families.NO_DROPOUT)
        inputs = families.batch(family)
        inputs |= families.labels_for(family, head, inputs)
    if inputs["labels"].dim() == 2:
        inputs["labels"][0, 1:] = -100
    return model, inputs


def layers_of(model: Any) -> Iterable[nn.Module]:
    """Modules that compute a layer; XLM has none."""
    if model.config.model_type == "xlm":
        return ()
    encoder = model.base_model
    return encoder.layer_stack if hasattr(encoder, "layer_stack") else encoder.encoder.layers


def train(
    model: Any, samples: list[Sample], num_items: int, mesh: DeviceMesh, folder: Path, checkpointing: bool = False
) -> None:
    """Three steps; each process has half of the samples, and other numbers of labels."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    collate = PackedCollator.for_model(model)
    loss_func = None if getattr(model, "accepts_loss_kwargs", False) else compute_loss_func()

    def loss_of(model: Any, samples: list[Sample]) -> torch.Tensor:
        inputs = collate(samples)
        if loss_func is None:
            return model(**inputs, num_items_in_batch=num_items).loss
        return loss_func(model(**inputs), inputs["labels"], num_items)

    alone = copy.deepcopy(model)
    plain_steps(alone, lambda model: loss_of(model, samples), 3)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    sgd = torch.optim.SGD(model.train().parameters(), lr=LEARNING_RATE)
    for _ in range(3):
        sgd.zero_grad()
        # Gradients are averaged over the processes.
        (loss_of(model, samples[rank::ranks]) * ranks).backward()
        sgd.step()
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        expected = alone.state_dict()
        for name, value in whole.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)
        model.save_pretrained(folder, state_dict=dict(whole))
        again = type(alone).from_pretrained(folder, dtype=torch.float64)
        for name, value in again.state_dict().items():
            assert torch.equal(value, whole[name]), name
    dist.barrier()


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(3)
    for family, head in HEADS:
        for checkpointing in (False, True):
            model, inputs = make_one(family, head)
            if checkpointing and not model.supports_gradient_checkpointing:
                continue
            num_items = int((inputs["labels"] != -100).sum())
            train(model, samples_of(inputs), num_items, mesh, folder / family, checkpointing)
            print(family, head, checkpointing, flush=True)
    print("all heads trained", flush=True)


main(Path(sys.argv[1]))

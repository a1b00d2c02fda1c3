"""FSDP2 and accelerate around padding-free models of transformers."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import BertConfig, BertForSequenceClassification

from erniem_fast import encoder, padding_free, restore


def classifier() -> Any:
    config = BertConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3,
    )  # fmt: skip
    return BertForSequenceClassification(config).double()


def inputs(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (3, 9), generator=generator)
    mask = torch.arange(9) < torch.tensor([9, 4, 6])[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long(), "labels": torch.tensor([0, 1, 1])}


def count_layers_on_rows(counted: list[int]) -> None:
    run = encoder.run_layer

    def counting(parts: Any, x: Tensor, *args: Any) -> Any:
        counted.append(x.shape[0])
        return run(parts, x, *args)

    encoder.run_layer = counting


def train_sharded(rank: int, store: Path, state: dict[str, Tensor]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    model = classifier().train()
    model.load_state_dict(state)
    plain = copy.deepcopy(model)
    padding_free(model)
    mesh = init_device_mesh("cpu", (2,))
    for module in (model.bert.embeddings, *model.bert.encoder.layer, model):
        fully_shard(module, mesh=mesh)
    counted: list[int] = []
    count_layers_on_rows(counted)
    model(**inputs(rank)).loss.backward()
    assert counted == [19, 19]  # real tokens
    plain(**inputs(rank)).loss.backward()
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        dist.all_reduce(expected.grad)
        torch.testing.assert_close(found.grad.full_tensor(), expected.grad / 2, rtol=0, atol=1e-12)
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that ends in good order


@pytest.mark.slow
def test_fsdp2_shards_a_padding_free_model(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_sharded, (tmp_path / "store", classifier().state_dict()), nprocs=2)


def test_accelerate_s_hooks_run_the_padding_free_forward(rows: list[int]) -> None:
    """They keep the bound forward that they found when they were added."""
    model = classifier().eval()
    expected = model(**inputs(0)).logits
    for module in (model.bert.encoder.layer[0], model.bert.embeddings, model.bert, model):
        add_hook_to_module(module, ModelHook())
    padding_free(model)
    torch.testing.assert_close(model(**inputs(0)).logits, expected, rtol=0, atol=1e-12)
    assert rows == [19, 19]
    restore(model)
    assert torch.equal(model(**inputs(0)).logits, expected)
    assert rows == [19, 19]

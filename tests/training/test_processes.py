"""Two processes, by gloo on a CPU: training equals one process on the joined batch, and no row is lost or repeated."""

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import typer
from accelerate.commands.config import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from helpers import families
from helpers.launches import launch
from helpers.paths import ROOT
from helpers.trained import arguments_of
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

import erniem_fast
from erniem_fast.cli.training import exit_codes
from erniem_fast.training import end_process_group
from erniem_fast.training.callbacks import StoppedError


@pytest.mark.parametrize(
    ("family", "head", "counts"),
    [
        ("xlm-roberta", "ForSequenceClassification", False), ("xlm", "ForTokenClassification", False),
        ("distilbert", "ForMaskedLM", True), ("bert", "ForQuestionAnswering", True),
    ],
)  # fmt: skip
def test_trainer_scales_the_loss_of_heads_that_count_items_only(
    family: str, head: str, counts: bool, tmp_path: Path
) -> None:
    """transformers' own heads swallow `num_items_in_batch`; Trainer would multiply their means by the processes."""
    _, model = families.make(family, head)
    assert Trainer(model, arguments_of(tmp_path)).model_accepts_loss_kwargs is counts


def test_the_documented_configuration_is_one_of_accelerate(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"cat > fsdp2\.yaml <<'END'\n(.*?)END\n", page, re.DOTALL)
    (tmp_path / "fsdp2.yaml").write_text(text, encoding="utf-8")
    config = load_config_from_file(str(tmp_path / "fsdp2.yaml"))
    assert config.distributed_type == "FSDP"
    assert config.fsdp_config["fsdp_version"] == 2
    # The names are those that `accelerate launch` hands on, and the layer is one of the model's.
    arguments = {action.dest for action in launch_command_parser()._actions}
    assert config.fsdp_config.keys() <= arguments
    layer = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    assert layer in erniem_fast.ErnieMPreTrainedModel._no_split_modules


@pytest.mark.slow
def test_trainer_under_torchrun(tmp_path: Path) -> None:
    """Train every head of ErnieM, and heads of the families, with uneven labels, accumulated; evaluate; resume."""
    said = launch("train,evaluate,resume", tmp_path)
    assert [said.count(text) for text in ("all heads trained", "every row", "the same to the bit")] == [2, 2, 2]


@pytest.mark.slow
def test_trainer_under_accelerate_launch(tmp_path: Path) -> None:
    said = launch("train", tmp_path, "ErnieMForTokenClassification", by="accelerate")
    assert said.count("all heads trained") == 2


@pytest.mark.slow
def test_fully_sharded_training(tmp_path: Path) -> None:
    """Weights after steps of FSDP2, with and without gradient checkpointing, and from the checkpoint saved."""
    assert launch("shard", tmp_path).count("all heads trained") == 2


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of one."""
    if sys.platform == "linux":
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    end_process_group()


def train_wrapped(error: Exception | None = None) -> None:
    """A step of a wrapped model, which the error's traceback refers to."""
    model = DistributedDataParallel(torch.nn.Linear(3, 2))
    model(torch.randn(4, 3)).sum().backward()
    if error is not None:
        raise error


@pytest.mark.usefixtures("group")
def test_a_process_group_ends_behind_the_models_it_serves() -> None:
    model = DistributedDataParallel(torch.nn.Linear(3, 2))
    with pytest.warns(RuntimeWarning, match="DistributedDataParallel exists"):
        end_process_group()
    assert dist.is_initialized()
    del model
    train_wrapped()
    end_process_group()
    assert not dist.is_initialized()
    end_process_group()  # there is none


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("error", [None, StoppedError(15, 3)])
def test_commands_that_train_end_their_process_group(error: Exception | None) -> None:
    with suppress(typer.Exit), exit_codes():
        train_wrapped(error)
    assert not dist.is_initialized()

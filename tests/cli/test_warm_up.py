"""The warm-up compiles what a model will need: no batch asks for a kernel that it has not run."""

import inspect
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from typer.testing import CliRunner

triton = pytest.importorskip("triton")

from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from erniem_fast import ErnieMConfig, ErnieMModel, PackedBatch, padding_free
from erniem_fast.cli.main import app
from erniem_fast.cli.warm_up import warm_up
from erniem_fast.inference.loading import model_class
from erniem_fast.kernels.jit import HeldKernel

CONFIG = ErnieMConfig(
    vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
    max_position_embeddings=514, act_dropout=0.1,
)  # fmt: skip


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> set[Any]:
    """Kernel, dtypes of the tensors and constants of each launch: what it is compiled for. On a CPU nothing is run."""
    seen: set[Any] = set()
    function: Any = InterpretedFunction if device.type == "cpu" else JITFunction
    real = function.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        parameters = inspect.signature(self.fn).parameters
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        compiled = {name for name, parameter in parameters.items() if "constexpr" in str(parameter.annotation)}
        compiled |= {"num_warps", "num_stages"}
        constants = {name: value for name, value in given.items() if name in compiled}
        dtypes = {name: value.dtype for name, value in given.items() if isinstance(value, Tensor)}
        seen.add((self.fn.__module__, self.fn.__name__, *sorted({**constants, **dtypes}.items(), key=str)))
        return None if device.type == "cpu" else real(self, *args, grid=grid, warmup=warmup, **kwargs)

    monkeypatch.setattr(function, "run", run)
    monkeypatch.setattr(HeldKernel, "__getitem__", JITFunction.__getitem__)
    return seen


def batches(longest: int) -> list[list[int]]:
    random = torch.randint(1, longest + 1, (6, 7)).tolist()
    return [[length] for length in (1, 16, 17, 32, 33, 64, 65, 100, 128, 129, 200, longest)] + [
        [500, *[3] * 20], [500, 500, 400], [64] * 50, [1] * 100, *random,
    ]  # fmt: skip


def of_family(name: str, **changes: Any) -> Any:
    sizes = {"vocab_size": 300, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 514}
    return getattr(transformers, f"{name}Config")(**sizes | changes)


FAMILIES = {
    "Bert": of_family("Bert", hidden_size=32, intermediate_size=48, hidden_act="relu"),
    "XLMRoberta": of_family("XLMRoberta", hidden_size=32, intermediate_size=48, pad_token_id=1),
    "Electra": of_family("Electra", hidden_size=32, intermediate_size=48, embedding_size=16),
    "DistilBert": of_family("DistilBert", dim=32, hidden_dim=48),
    "XLM": of_family("XLM", emb_dim=32),
}


@pytest.mark.parametrize(
    "config",
    [pytest.param(CONFIG, id="ErnieM")]
    + [pytest.param(config, id=name, marks=pytest.mark.slow) for name, config in FAMILIES.items()],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_no_batch_needs_another_kernel(
    config: Any, dtype: torch.dtype, training: bool, launched: set[Any], device: torch.device
) -> None:
    warm_up(config, device, dtype, training)
    warm = set(launched)
    assert len(warm) > 5
    model: Any = padding_free(model_class(config)(config)).to(device, dtype).eval()
    limits = model.limits
    for autocast in {False, training and dtype != torch.float32}:
        if autocast:
            model = model.float()
        model.backend = "triton"
        for lengths in batches(limits.max_tokens):
            rows = [torch.randint(2, 300, (length,)) for length in lengths]
            batch = PackedBatch.from_sequences(rows, device, limits.first_position)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                if not autocast:
                    with torch.no_grad():
                        model.eval()(batch)
                rows = model.train()(batch).last_hidden_state if training else None
            if rows is not None:
                rows.sum().backward()
    assert launched == warm


def test_the_command_needs_a_gpu(tmp_path: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    result = CliRunner().invoke(app, ["warm-up", "--model", str(tmp_path)])
    assert result.exit_code == 2
    assert "there is no CUDA device to compile for" in result.output + (result.stderr or "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_command(tmp_path: Any) -> None:
    ErnieMModel(CONFIG).save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["warm-up", "--model", str(tmp_path), "--training"])
    assert result.exit_code == 0, result.output

"""The Triton backend as a whole: the model on it, torch.library's checks, compilation, autocast, addresses, limits."""

import copy
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers.paths import ROOT
from helpers.processes import PATIENCE
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

pytest.importorskip("triton")

import erniem_fast
from erniem_fast import ErnieMConfig, PackedBatch, ops
from erniem_fast.kernels import activation, attention, embedding, layer_norm, linear, mlp
from erniem_fast.ops import Dropout

DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "act_dropout": 0.1}


def make(device: torch.device, layers: int = 2, **changes: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 130,
        "initializer_range": 0.2,
    }
    model = erniem_fast.ErnieMModel(ErnieMConfig(**(sizes | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.to(device)


def sequences(lengths: tuple[int, ...], device: torch.device) -> PackedBatch:
    return PackedBatch.from_sequences([torch.randint(2, 97, (length,)) for length in lengths], device)


def run(model: Any, batch: Any, backend: str, seed: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states and the gradients of the parameters."""
    model.backend = backend
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    output = model(batch) if isinstance(batch, PackedBatch) else model(**batch)
    (output.last_hidden_state.float().tanh().square().sum() + output.pooler_output.float().sum()).backward()
    return output.last_hidden_state.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    largest = max(float(grad.abs().max()) for grad in expected[1].values())
    for name, grad in expected[1].items():
        # The key bias moves no softmax: its gradient is rounding.
        scale = largest if "k_proj.bias" in name else float(grad.abs().max())
        assert float((found[1][name] - grad).abs().max()) <= 1e-4 * scale, name


@pytest.mark.parametrize(
    ("training", "lengths"),
    [
        (True, (5, 16, 0, 3)),
        pytest.param(False, (70, 33, 1), marks=pytest.mark.slow),
        pytest.param(False, (5, 16, 0, 3), marks=pytest.mark.slow),
        pytest.param(True, (70, 33, 1), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_model_is_the_torch_backend_s(training: bool, lengths: tuple[int, ...], device: torch.device) -> None:
    """The model has dropout: the masks are the same, too."""
    model = make(device, **DROPOUT).train(training)
    batch = sequences(lengths, device)
    assert_same(run(model, batch, "triton"), run(model, batch, "torch"))


def test_padded_input_and_no_gradients(device: torch.device) -> None:
    model = make(device).eval()
    ids = torch.randint(2, 97, (3, 20), device=device)
    mask = torch.ones_like(ids)
    mask[0, :4], mask[1, 11:] = 0, 0
    with torch.no_grad():
        found = []
        for backend in ("triton", "torch"):
            model.backend = backend
            found.append(model(input_ids=ids, attention_mask=mask))
    for key in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(found[0][key], found[1][key], rtol=0, atol=1e-5)


def test_prefix_lens_reach_the_kernels(device: torch.device) -> None:
    model = make(device, layers=1).eval()
    batch = sequences((40, 9), device)
    batch = PackedBatch(**{**vars(batch), "prefix_lens": torch.tensor([13, 4], dtype=torch.int32, device=device)})
    expected = run(model, batch, "torch")
    assert_same(run(model, batch, "triton"), expected)


@pytest.mark.parametrize(
    ("dtype", "lengths"),
    [
        (torch.bfloat16, (20, 9)),
        pytest.param(torch.bfloat16, (33, 9, 70), marks=pytest.mark.slow),
        pytest.param(torch.float16, (33, 9, 70), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_half_precision_is_at_most_twice_as_wrong_as_torch(
    dtype: torch.dtype, lengths: tuple[int, ...], device: torch.device
) -> None:
    model = make(device, hidden_size=64, intermediate_size=128).eval()
    batch = sequences(lengths, device)
    expected = run(copy.deepcopy(model).double(), batch, "torch")[0]
    low = model.to(dtype)
    kernels, plain = (run(low, batch, backend)[0] for backend in ("triton", "torch"))
    assert kernels.dtype == dtype
    assert (kernels - expected).norm() <= 2 * (plain - expected).norm()


@pytest.mark.parametrize("lengths", [(16, 9), pytest.param((33, 9), marks=pytest.mark.slow)], ids=str)
def test_autocast(lengths: tuple[int, ...], device: torch.device) -> None:
    model = make(device, layers=1, **DROPOUT).train()
    batch = sequences(lengths, device)
    expected = run(copy.deepcopy(model).double(), batch, "torch")
    errors = []
    for backend in ("triton", "torch"):
        with torch.autocast(device.type, torch.bfloat16):
            hidden, grads = run(model, batch, backend)
        assert hidden.dtype == torch.float32
        assert all(grad.dtype == torch.float32 for grad in grads.values())
        errors.append(
            [(hidden - expected[0]).norm().item()]
            + [(grads[name] - grad).norm().item() for name, grad in expected[1].items()]
        )
    assert errors[0][0] <= 2 * errors[1][0]
    assert sum(errors[0][1:]) <= 2 * sum(errors[1][1:])


@pytest.mark.parametrize(
    ("reentrant", "lengths"),
    [(False, (9, 5)), *(pytest.param(value, (33, 9), marks=pytest.mark.slow) for value in (False, True))],
)
def test_checkpointing_changes_nothing(reentrant: bool, lengths: tuple[int, ...], device: torch.device) -> None:
    """Masks, results and gradients stay; those of two words depend on the order in which rows are added."""
    model = make(device, layers=1, vocab_size=4, **DROPOUT).train()
    batch = PackedBatch.from_sequences([torch.randint(2, 4, (length,)) for length in lengths], device)
    expected = run(model, batch, "triton")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = run(model, batch, "triton")
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][name], grad) for name, grad in expected[1].items())


@pytest.mark.slow
def test_one_compiled_graph_serves_all(device: torch.device) -> None:
    model = make(device, layers=1, **DROPOUT).train()
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    fast = torch.compile(model, fullgraph=True, backend=counter)
    for lengths in ((5, 3), (16, 2, 9), (30, 35), (70, 3, 3), (1, 1, 1, 1)):
        offsets = torch.tensor([0, *lengths], device=device).cumsum(0).int()
        batch = {
            "input_ids": torch.randint(2, 97, (1, sum(lengths)), device=device),
            "cu_seq_lens_q": offsets,
            "cu_seq_lens_k": offsets,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        }
        eager = run(model, batch, "triton")
        model.zero_grad(set_to_none=True)
        torch.manual_seed(3)
        output = fast(**batch)
        (output.last_hidden_state.tanh().square().sum() + output.pooler_output.sum()).backward()
        compiled = output.last_hidden_state.detach(), {n: p.grad for n, p in model.named_parameters()}
        assert_same(compiled, eager)
    assert 1 <= counter.frame_count <= 2
    torch._dynamo.reset()


@pytest.mark.slow
def test_inductor(device: torch.device) -> None:
    # Without dropout: inductor draws other random numbers than eager PyTorch.
    model = make(device, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    torch._dynamo.reset()
    fast = torch.compile(model, fullgraph=True, dynamic=True)
    batch = sequences((33, 9), device)
    expected = run(model, batch, "triton")
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    output = fast(batch)
    (output.last_hidden_state.tanh().square().sum() + output.pooler_output.sum()).backward()
    assert_same((output.last_hidden_state.detach(), {n: p.grad for n, p in model.named_parameters()}), expected)
    torch._dynamo.reset()


def operations(device: torch.device) -> list[tuple[Any, tuple[Any, ...]]]:
    """Each registered operation with arguments that exercise all of it."""

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, requires_grad=True)

    def plain(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    offsets = torch.tensor([0, 5, 5, 8], dtype=torch.int32, device=device)
    prefixes = torch.tensor([2, 0, 3], dtype=torch.int32, device=device)
    dropout = Dropout(0.2, ops.draw_seed(device), 3)
    tiles = attention.attention_tiles(offsets, 5, 8, 0)
    rest = (offsets, tiles, 5, 0, prefixes, False, dropout)
    out, lse = attention.varlen_attention.forward(plain(8, 3, 2, 16), *rest)
    ids = torch.randint(0, 5, (8,), device=device)
    float32 = torch.float32
    return [
        (attention.attention_tiles, (offsets, 5, 8, 0)),
        (attention.attention_tiles, (offsets, 5, 8, 64)),
        (attention.varlen_attention, (leaf(8, 3, 2, 16), *rest)),
        (attention.varlen_attention_backward, (plain(8, 2, 16), plain(8, 3, 2, 16), out, lse, *rest)),
        (
            layer_norm.dropout_add_layer_norm,
            (leaf(8, 24), leaf(8, 24), leaf(24), leaf(24), leaf(24), 1e-5, dropout, True),
        ),
        (
            layer_norm.dropout_add_layer_norm,
            (plain(8, 24), plain(8, 24), plain(24), plain(24), None, 1e-5, None, False),
        ),
        (
            layer_norm.dropout_add_layer_norm_backward,
            (plain(8, 24), plain(8, 24), plain(8), plain(8), plain(24), float32, float32, True, dropout),
        ),
        (activation.bias_activation_dropout, (leaf(8, 24), leaf(24), "gelu", dropout)),
        (activation.bias_activation_dropout, (leaf(8, 24), None, "relu", None)),
        (activation.bias_activation_dropout_backward, (plain(8, 24), plain(8, 24), plain(24), "gelu", dropout, True)),
        (linear.linear, (plain(8, 24), plain(40, 24), plain(40))),
        (mlp.mlp, (leaf(8, 24), leaf(40, 24), leaf(40), leaf(24, 40), "relu", dropout, True)),
        (
            mlp.mlp_backward,
            (
                plain(8, 24), plain(8, 24), plain(8, 40), plain(40, 24), plain(40), plain(24, 40), "gelu", dropout,
                True, True, False,
            ),
        ),
        (
            embedding.embedding_layer_norm,
            (ids, leaf(5, 24), ids, leaf(6, 24), leaf(24), leaf(24), 1e-5, 1, -1, dropout, True),
        ),
        (
            embedding.embedding_layer_norm,
            (None, leaf(8, 24), ids, leaf(6, 24), leaf(24), leaf(24), 1e-5, 1, 2, None, True),
        ),
        (
            embedding.embedding_layer_norm_backward,
            (
                plain(8, 24), ids, plain(5, 24), ids, plain(6, 24), plain(24), plain(8), plain(8), 1, -1, dropout,
                True, False,
            ),
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("index", range(16))
def test_opcheck(index: int, device: torch.device) -> None:
    checked = operations(device)
    assert len(checked) == 16
    operation, arguments = checked[index]
    torch.library.opcheck(operation.op, operation.flatten(arguments))


def test_a_dropout_is_one_argument_for_all_but_torch(device: torch.device) -> None:
    """The dispatcher and the path past it give the same result, and the same gradient."""
    x = torch.randn(8, 24, device=device, requires_grad=True)
    for dropout in (Dropout(0.3, ops.draw_seed(device), 5), None):
        arguments = (x, None, "gelu", dropout)
        flat = activation.bias_activation_dropout.flatten(arguments)
        assert len(flat) == 6
        assert activation.bias_activation_dropout.regroup(flat) == arguments
        eager, dispatched = activation.bias_activation_dropout(*arguments), activation.bias_activation_dropout.op(*flat)
        assert torch.equal(eager, dispatched)
        assert (dropout is not None) == bool((eager == 0).any())
        grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (eager, dispatched)]
        assert torch.equal(*grads)


def test_a_dropout_of_probability_zero_is_none(device: torch.device) -> None:
    nothing = Dropout(0.0, ops.draw_seed(device), 5)
    x, residual = (torch.randn(8, 24, device=device, requires_grad=True) for _ in range(2))
    vector, grad = torch.randn(24, device=device), torch.randn(8, 24, device=device)
    runs = [
        ops.dropout_add_layer_norm(x, residual, vector, vector, 1e-5, dropout=dropout, backend="triton")
        for dropout in (nothing, None)
    ]
    assert torch.equal(*runs)
    grads = [torch.autograd.grad(y, (x, residual), grad) for y in runs]
    assert all(torch.equal(one, two) for one, two in zip(*grads, strict=True))


def test_a_backend_that_cannot_be_had(device: torch.device) -> None:
    good = torch.randn(4, 16, device=device)
    with pytest.raises(ValueError, match=r"backend 'triton' needs float32, bfloat16 or float16, got torch\.float64"):
        ops.bias_activation_dropout(good.double(), backend="triton")
    offsets = torch.tensor([0, 4], dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match=r"needs a head_dim of at most 128, got 136"):
        ops.varlen_attention(torch.randn(4, 3, 1, 136, device=device), offsets, 4, backend="triton")
    wide, vector = torch.randn(1, 4097, device=device), torch.randn(4097, device=device)
    with pytest.raises(ValueError, match=r"needs a hidden_size of at most 4096, got 4097"):
        ops.dropout_add_layer_norm(wide, wide, vector, vector, 1e-5, backend="triton")


def test_operands_of_one_dtype_too_many(device: torch.device) -> None:
    """A float64 operand among others is not computed in float32 in silence."""
    x, vector = torch.randn(2, 16, device=device), torch.randn(16, device=device)
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        ops.dropout_add_layer_norm(x, x.double(), vector, vector, 1e-5, backend="triton")


def test_no_gradients_are_made_up(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that are not differentiable get None, not gradients of zeros."""
    seen: list[Any] = []
    x = torch.randn(4, 16, device=device, requires_grad=True)
    vector = torch.randn(16, device=device)
    y = ops.dropout_add_layer_norm(x, x, vector, vector, 1e-5, backend="triton")
    function = layer_norm.dropout_add_layer_norm.function
    backward = function.backward
    monkeypatch.setattr(
        function, "backward", staticmethod(lambda ctx, *grads: (seen.extend(grads), backward(ctx, *grads))[1])
    )
    y.sum().backward()
    assert len(seen) == 4
    assert seen[0] is not None
    assert seen[1:] == [None] * 3


@pytest.mark.slow
@pytest.mark.parametrize("new_api", [False, True])
def test_tf32_is_read_by_either_api(new_api: bool) -> None:
    code = f"""
import torch
from erniem_fast.kernels.common import precision
assert precision(torch.float32, torch.device("cpu")) == "tf32x3"
if {new_api}:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
else:
    torch.backends.cuda.matmul.allow_tf32 = True
print(precision(torch.float32, torch.device("cpu")), precision(torch.bfloat16, torch.device("cpu")))
"""
    done = in_a_process(code, TRITON_INTERPRET="1")
    assert done.stdout.split() == ["tf32", "ieee"], done.stderr


def test_auto() -> None:
    cpu = torch.device("cpu")
    assert ops.resolve_backend("auto", cpu) == "torch"
    assert ops.resolve_backend("torch", cpu) == "torch"
    if torch.cuda.is_available():
        assert ops.resolve_backend("auto", torch.device("cuda")) == "triton"
        assert ops.resolve_backend("auto", torch.device("cuda"), torch.float64) == "torch"


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


@pytest.mark.slow
def test_without_the_interpreter_a_cpu_is_refused() -> None:
    code = """
import torch
from erniem_fast import ops
try:
    ops.bias_activation_dropout(torch.randn(2, 16), backend="triton")
except ValueError as error:
    print(error)
"""
    done = in_a_process(code, TRITON_INTERPRET="0")
    assert "needs a CUDA device (or a CPU under TRITON_INTERPRET=1), got cpu" in done.stdout, done.stderr


def test_without_triton_everything_else_works() -> None:
    code = """
import sys
sys.modules["triton"] = None
import importlib.machinery
from importlib import util
found = util.find_spec
import torch
import erniem_fast
from erniem_fast import ops
from erniem_fast.ops import backend
backend.find_spec = lambda name: None if name == "triton" else found(name)
assert ops.bias_activation_dropout(torch.randn(2, 16)).shape == (2, 16)
try:
    ops.bias_activation_dropout(torch.randn(2, 16), backend="triton")
except ValueError as error:
    print(error)
"""
    done = in_a_process(code)
    assert "needs the package triton, which is not installed" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts on memory that is committed when it is touched")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs a million tokens instead")
def test_addresses_are_64_bit() -> None:
    code = (ROOT / "tests" / "helpers" / "far_addresses.py").read_text()
    done = in_a_process(code, TRITON_INTERPRET="1")
    assert done.stdout.strip() == "right", f"exit code {done.returncode}: {done.stderr[-2000:]}"

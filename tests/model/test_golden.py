"""Outputs, losses and gradients of transformers 4.40.2 (tests/golden/model), for both models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import GOLDEN_MODEL
from safetensors.torch import load_file

import erniem_fast
from erniem_fast import ErnieMConfig, reference

FOLDER = GOLDEN_MODEL
CASES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
# The padding-free model differs here by design; test_model.py compares it with the reference row by row.
DIFFERS = {"ie": {"loss"}, "qa": {"loss"}, "model_left_padded": {"pooler_output", "scalar"}}
DTYPES = {torch.float64: 1e-6, torch.float32: 1e-4}
INTERPRETED = ("model_left_padded",)
"""Cases that run interpreted kernels in the quick part: padding on either side, losses, gradients."""


def load(case: str, dtype: torch.dtype, models: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    folder = FOLDER / case
    name = json.loads((folder / "case.json").read_text())["class"]
    model = getattr(models, name)(ErnieMConfig.from_pretrained(folder))
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    inputs = load_file(folder / "inputs.safetensors")
    model = model.to(dtype).eval()
    return model, {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}


def run(model: Any, inputs: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    kinds = {key.split(".")[0] for key in expected}
    output = model(
        **inputs, output_attentions="attentions" in kinds or None, output_hidden_states="hidden_states" in kinds or None
    )
    found = {}
    for key in expected.keys() - {"scalar"}:
        name, _, layer = key.partition(".")
        found[key] = output[name][int(layer)] if layer else output[name]
    if "scalar" in expected:
        hidden = output.last_hidden_state
        weight = torch.linspace(-1, 1, hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
        counted = real_tokens(inputs)[..., None].to(hidden.dtype)
        found["scalar"] = ((hidden * weight).tanh() * counted).sum() + (output.pooler_output**2).sum()
    return found


def real_tokens(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    if "attention_mask" in inputs:
        return inputs["attention_mask"].bool().flatten(0, -2)
    if "input_ids" in inputs:
        return (inputs["input_ids"] != 1).flatten(0, -2)
    return torch.ones(inputs["inputs_embeds"].shape[:2], dtype=torch.bool)


def assert_close(key: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float, scale: float = 0.0) -> None:
    scale = max(scale, expected.abs().max().item())
    error = (found.detach().double() - expected.double()).abs().max().item()
    assert error <= tolerance * scale, f"{key}: relative error {error / scale:.2e}"


def assert_gradients(model: Any, folder: Path, tolerance: float) -> None:
    expected = load_file(folder / "grads.safetensors")
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    parameters = dict(model.named_parameters())
    assert expected.keys() <= parameters.keys()
    for key, gradient in expected.items():
        found = parameters[key].grad
        found = (torch.zeros_like(parameters[key]) if found is None else found).cpu()
        # A gradient that is 0 in exact arithmetic (the key bias shifts all scores alike) is stored as rounding error.
        vanishes = gradient.abs().max() < 1e-12 * largest
        assert_close(key, found, gradient, tolerance, scale=largest if vanishes else 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_reference_is_4_40_2(case: str, dtype: torch.dtype) -> None:
    model, inputs = load(case, dtype, reference)
    expected = load_file(FOLDER / case / "outputs.safetensors")
    found = run(model, inputs, expected)
    for key in expected:
        assert_close(key, found[key], expected[key], DTYPES[dtype])
    found["scalar" if "scalar" in found else "loss"].backward()
    assert_gradients(model, FOLDER / case, DTYPES[dtype])


BACKENDS = [
    *((case, dtype, "torch") for case in CASES for dtype in DTYPES),
    *(
        pytest.param(case, torch.float32, "triton", marks=[] if case in INTERPRETED else pytest.mark.slow)
        for case in CASES
    ),
]


@pytest.mark.parametrize(("case", "dtype", "backend"), BACKENDS, ids=str)
def test_fast_is_4_40_2_at_real_positions(case: str, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    model, inputs = load(case, dtype, erniem_fast)
    for module in model.modules():
        if isinstance(module, erniem_fast.ErnieMModel):
            module.backend = backend
    expected = load_file(FOLDER / case / "outputs.safetensors")
    model = model.to(device)
    found = run(model, {key: value.to(device) for key, value in inputs.items()}, expected)
    real = real_tokens(inputs)
    for key in expected.keys() - DIFFERS.get(case, set()):
        value, wanted = found[key].cpu(), expected[key]
        if wanted.shape[:2] == real.shape:
            fill = torch.finfo(dtype).min if key.endswith("logits") and "tokcls" not in case else 0.0
            assert (value[~real] == fill).all()
            value, wanted = value[real], wanted[real]
        elif key.startswith("attentions"):
            queries = real[:, None, :, None].expand_as(wanted)
            assert (value[~queries] == 0).all()
            value, wanted = value[queries], wanted[queries]
        assert_close(key, value, wanted, DTYPES[dtype])
    if case not in DIFFERS:
        found["scalar" if "scalar" in found else "loss"].backward()
        assert_gradients(model, FOLDER / case, DTYPES[dtype])


def test_arguments_are_not_changed() -> None:
    """Position ids stay as the caller gave them; 4.40.2 adds 2 to them in place."""
    for models in (reference, erniem_fast):
        model, inputs = load("model_position_ids", torch.float32, models)
        before = {key: value.clone() for key, value in inputs.items()}
        first, second = model(**inputs).last_hidden_state, model(**inputs).last_hidden_state
        assert torch.equal(first, second)
        assert all(torch.equal(inputs[key], before[key]) for key in before)

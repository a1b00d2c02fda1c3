"""The models in transformers: Auto classes, pipelines, parameters, autocast, offloading, outputs."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from helpers.pairs import (
    AUTO,
    CLASSES,
    NO_DROPOUT,
    SIZES,
    TEXTS,
    TOKENIZER,
    assert_agree,
    assert_close,
    batch,
    gradients,
    labels_for,
    make,
)
from helpers.paths import ROOT
from helpers.processes import PATIENCE
from torch import nn
from transformers import pipeline

import erniem_fast
from erniem_fast import ErnieMConfig, ErnieMTokenizer, PackedBatch, ops, reference
from erniem_fast.encoder import PackedContext
from erniem_fast.outputs import OutputOptions

# Registration


def test_auto_classes(tmp_path: Path) -> None:
    config = ErnieMConfig(**SIZES)
    for auto, name in AUTO.items():
        cls = getattr(erniem_fast, name)
        assert type(getattr(transformers, auto).from_config(config)) is cls
        cls(config).save_pretrained(tmp_path / name)
        assert type(getattr(transformers, auto).from_pretrained(tmp_path / name)) is cls
    assert type(transformers.AutoConfig.from_pretrained(tmp_path / "ErnieMModel")) is ErnieMConfig
    assert type(transformers.AutoConfig.for_model("ernie_m")) is ErnieMConfig
    for file in ("vocab.txt", "sentencepiece.bpe.model"):
        shutil.copy(TOKENIZER / file, tmp_path / "ErnieMModel")
    assert type(transformers.AutoTokenizer.from_pretrained(tmp_path / "ErnieMModel")) is ErnieMTokenizer


@pytest.mark.slow
def test_importing_the_package_is_enough(tmp_path: Path) -> None:
    erniem_fast.ErnieMModel(ErnieMConfig(**SIZES)).save_pretrained(tmp_path)
    for file in ("vocab.txt", "sentencepiece.bpe.model"):
        shutil.copy(TOKENIZER / file, tmp_path)
    lines = [
        "import sys, erniem_fast",
        f"from transformers import AutoConfig, AutoTokenizer, {', '.join(AUTO)}",
        "import transformers",
        "print(type(AutoConfig.from_pretrained(sys.argv[1])).__module__)",
        "print(type(AutoTokenizer.from_pretrained(sys.argv[1])).__module__)",
        f"for name in {list(AUTO)}:",
        "    print(type(getattr(transformers, name).from_pretrained(sys.argv[1])).__name__)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["erniem_fast.configuration", "erniem_fast.tokenization.tokenizer", *AUTO.values()]


# Pipelines


@pytest.fixture(scope="module")
def tokenizer() -> ErnieMTokenizer:
    return ErnieMTokenizer(TOKENIZER / "sentencepiece.bpe.model", TOKENIZER / "vocab.txt")


def pipeline_model(name: str, tokenizer: ErnieMTokenizer, **changes: Any) -> Any:
    return make(name, vocab_size=len(tokenizer), max_position_embeddings=130, **changes)


def test_texts_longer_than_the_model_takes_are_cut(tmp_path: Path, tokenizer: ErnieMTokenizer) -> None:
    """A folder of 4.x sets no limit; pipelines and sentence-transformers read `model_max_length`."""
    _, model = pipeline_model("ErnieMForTokenClassification", tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": int(1e30)}))
    pipe = pipeline("token-classification", str(tmp_path), device="cpu", ignore_labels=[])
    assert pipe.tokenizer.model_max_length == model.config.max_tokens == 128
    assert len(pipe(TEXTS[0] * 40)) == 126


# The models themselves


@pytest.mark.parametrize("name", CLASSES)
def test_both_models_have_the_same_state(name: str) -> None:
    plain, fast = make(name, num_labels=2)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in fast.state_dict().items()}
    assert [k for k, _ in plain.named_parameters()] == [k for k, _ in fast.named_parameters()]
    assert [k for k, _ in plain.named_modules()] == [k for k, _ in fast.named_modules()]
    with torch.no_grad():
        fast(**{k: v[None] for k, v in batch().items()} if "Choice" in name else batch())
    assert fast.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    ("sizes", "millions"),
    [
        ({}, 278.0),
        ({"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}, 559.9),
    ],
    ids=["base", "large"],
)
@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
def test_number_of_parameters(models: Any, sizes: dict[str, int], millions: float) -> None:
    with torch.device("meta"):
        model = models.ErnieMModel(ErnieMConfig(**sizes))
    assert round(model.num_parameters() / 1e6, 1) == millions


@pytest.mark.parametrize("name", CLASSES[1:])
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """Gradients under autocast have at most twice the plain model's error."""
    plain, fast = make(name, torch.float32, **NO_DROPOUT)
    inputs = batch((12,) * 48)  # of a few samples either may be near by chance
    inputs |= labels_for(name, inputs)
    if name == "ErnieMForMultipleChoice":
        inputs = {key: inputs[key].view(16, 3, 12) for key in ("input_ids", "attention_mask")}
        inputs["labels"] = torch.randint(3, (16,))
    exact = copy.deepcopy(plain).double()
    exact(**inputs).loss.backward()
    for model in (plain, fast):
        with torch.autocast("cpu", dtype):
            loss = model.train()(**inputs).loss
        assert loss.dtype == torch.float32
        loss.backward()

    def error(model: Any) -> float:
        found = gradients(model)
        assert found.keys() == gradients(exact).keys()
        assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in found.values())
        return sum(float((found[key] - grad).square().sum()) for key, grad in gradients(exact).items()) ** 0.5

    assert 0 < error(fast) <= 2 * error(plain)
    with torch.autocast("cpu", dtype), torch.no_grad():
        fast.eval()(**inputs)
    with torch.no_grad():  # no low-precision weight may be left in a cache
        expected = plain.eval()(**inputs).loss
        assert_close(fast(**inputs).loss, expected)


def test_autocast_with_dropout() -> None:
    _, fast = make("ErnieMForSequenceClassification", torch.float32, act_dropout=0.1)
    inputs = batch()
    inputs |= labels_for("ErnieMForSequenceClassification", inputs)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fast.train()(**inputs).loss
    loss.backward()
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in gradients(fast).values())
    assert len(gradients(fast)) == len(list(fast.parameters()))


@pytest.mark.parametrize("name", ["ErnieMModel", "ErnieMForSequenceClassification", "ErnieMForMaskedLM"])
def test_accelerate_offload(name: str) -> None:
    plain, fast = make(name)
    inputs = batch()
    with torch.no_grad():
        before = fast(**inputs)[0]
        offloaded = accelerate.cpu_offload(fast, execution_device="cpu")
        assert all(parameter.device.type == "meta" for parameter in offloaded.parameters())
        for _ in range(2):
            assert torch.allclose(offloaded(**inputs)[0], before, atol=1e-5)
            assert_agree(offloaded, plain, inputs)
        accelerate.hooks.remove_hook_from_submodules(offloaded)


def test_accelerate_offload_to_disk(tmp_path: Path) -> None:
    plain, fast = make("ErnieMForTokenClassification")
    inputs = batch()
    with torch.no_grad():
        assert_agree(accelerate.disk_offload(fast, str(tmp_path), execution_device="cpu"), plain, inputs)


def test_hidden_states_of_layers_on_other_devices() -> None:
    _, fast = make()

    class Elsewhere(nn.Module):
        def forward(self, *_: Any) -> tuple[torch.Tensor, None]:
            return torch.randn(4, 32, device="cpu"), None

    fast.encoder.layers[0] = fast.encoder.layers[1] = Elsewhere()
    packed = replace(PackedBatch.from_sequences([[5, 6, 7], [8]]), padded_shape=(2, 3), indices=torch.arange(4))
    context = PackedContext(packed.to("meta"), None, None, None, "torch")
    encoded = fast.encoder(torch.randn(4, 32, device="meta"), context, [None] * 2, OutputOptions(True, False, True))
    assert [(state.shape, state.device.type) for state in encoded.hidden_states] == [((2, 3, 32), "meta")] * 3


def test_layers_on_a_device_without_kernels_run_by_torch() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = PackedBatch.from_sequences([[5, 6, 7], [8]], device)
    sizes = {"num_heads": 4, "head_dim": 8, "backend": "triton"}
    plan = ops.attention_plan(batch.cu_seqlens, batch.max_seqlen, batch.total_tokens, **sizes)
    context = PackedContext(batch, None, None, plan, "triton")
    moved = context.to("meta")
    assert moved.plan is not None
    assert (moved.backend, moved.plan.backend, moved.plan.tiles) == ("torch", "torch", None)
    stayed = context.to(batch.position_ids.device)
    assert stayed.plan is not None
    assert (stayed.backend, stayed.plan.backend) == ("triton", "triton")
    assert stayed.plan.tiles is not None


def test_float64_embeddings_under_autocast_are_refused() -> None:
    for model in make(dtype=torch.float32):
        with torch.autocast("cpu", torch.bfloat16):
            assert model(inputs_embeds=torch.randn(2, 5, 32).bfloat16()).last_hidden_state.isfinite().all()
            with pytest.raises(ValueError, match=r"inputs_embeds must be torch.float32.*got torch.float64"):
                model(inputs_embeds=torch.randn(2, 5, 32).double())


@pytest.mark.parametrize("table", ["word_embeddings", "position_embeddings"])
def test_one_table_offloaded(table: str) -> None:
    """A vocabulary too large for the device: all else stays there."""
    plain, fast = make()
    inputs = batch()
    with torch.no_grad():
        accelerate.cpu_offload(fast.embeddings.get_submodule(table), execution_device="cpu")
        assert fast.embeddings.get_submodule(table).weight.device.type == "meta"
        assert_agree(fast, plain, inputs)


@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
def test_no_cache(models: Any) -> None:
    inputs = batch()
    for name in ("ErnieMModel", "ErnieMForSequenceClassification"):
        model = getattr(models, name)(ErnieMConfig(**SIZES)).eval()
        expected = model(**inputs)[0]
        for use_cache in (True, False, None):
            output = model(**inputs, use_cache=use_cache)
            assert torch.equal(output[0], expected)
            assert "past_key_values" not in output
    past = ((torch.randn(4, 4, 2, 8), torch.randn(4, 4, 2, 8)),) * 2
    for name in CLASSES:
        model = getattr(models, name)(ErnieMConfig(**SIZES)).eval()
        given = {key: value[None] for key, value in inputs.items()} if "Choice" in name else inputs
        for value in (past, transformers.DynamicCache()):
            # As in 4.40.2, not every head has the argument.
            with pytest.raises((TypeError, ValueError), match="past_key_values"):
                model(**given, past_key_values=value)


def shapes(value: Any) -> Any:
    if isinstance(value, tuple):
        return [shapes(one) for one in value]
    return None if value is None else tuple(value.shape)


STATES, ATTENTIONS = [(4, 10, 32)] * 3, [(4, 4, 10, 10)] * 2
TUPLES_OF_4_40_2 = {
    "ErnieMModel": [(4, 10, 32), (4, 32)],
    "ErnieMForSequenceClassification": [(4, 3)],
    "ErnieMForTokenClassification": [(4, 10, 3)],
    "ErnieMForQuestionAnswering": [(4, 10), (4, 10)],
    "ErnieMForInformationExtraction": [(4, 10), (4, 10)],
    "ErnieMForMultipleChoice": [(1, 4)],
    "ErnieMForMaskedLM": [(4, 10, 100)],
}


@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
@pytest.mark.parametrize("name", TUPLES_OF_4_40_2)
def test_tuples(models: Any, name: str) -> None:
    """`return_dict=False` gives 4.40.2's tuples; the argument takes precedence over the configuration."""
    changes = {} if name == "ErnieMForQuestionAnswering" else {"num_labels": 3}
    model = getattr(models, name)(ErnieMConfig(**SIZES, **changes)).eval()
    inputs = batch()
    labels = {} if name == "ErnieMModel" else labels_for(name, inputs, 3)
    if name == "ErnieMForMultipleChoice":
        inputs, labels = {key: value[None] for key, value in inputs.items()}, {"labels": torch.tensor([1])}
    plain = TUPLES_OF_4_40_2[name]
    loss = [()] if labels else []
    states, attentions = {"output_hidden_states": True}, {"output_attentions": True}

    def check(**options: Any) -> None:
        for given, first in (({}, []), (labels, loss)):
            output = model(**inputs, **given, **options)
            assert type(output) is tuple
            assert shapes(output) == first + plain
            assert shapes(model(**inputs, **given, **states, **options)) == [*first, *plain, STATES]
            assert shapes(model(**inputs, **given, **attentions, **options)) == [*first, *plain, ATTENTIONS]
            both = model(**inputs, **given, **states, **attentions, **options)
            assert shapes(both) == [*first, *plain, STATES, ATTENTIONS]

    check(return_dict=False)
    expected = model(**inputs, **labels)
    assert isinstance(expected, transformers.utils.ModelOutput)
    found = model(**inputs, **labels, return_dict=False)
    assert all(torch.equal(one, other) for one, other in zip(found, expected.to_tuple(), strict=True))
    model.config.return_dict = False
    check()
    assert isinstance(model(**inputs, return_dict=True), transformers.utils.ModelOutput)
    model.config.output_hidden_states = True
    assert shapes(model(**inputs)) == [*plain, STATES]
    assert shapes(model(**inputs, output_hidden_states=False)) == plain


@pytest.mark.parametrize("models", [erniem_fast, reference], ids=["fast", "reference"])
def test_the_poolers_place_is_kept_in_tuples(models: Any) -> None:
    model = models.ErnieMModel(ErnieMConfig(**SIZES), add_pooling_layer=False).eval()
    found = model(**batch(), return_dict=False, output_hidden_states=True)
    assert shapes(found) == [(4, 10, 32), None, STATES]


# Gradients of what is returned


@pytest.mark.parametrize("which", ["reference", "fast"])
@pytest.mark.parametrize("mask_dims", [2, 4])
def test_returned_hidden_states_and_attentions_take_part(which: str, mask_dims: int) -> None:
    """`retain_grad` on them gets a gradient, as transformers tests for its own models."""
    plain, fast = make(**NO_DROPOUT)
    inputs = batch()
    real_tokens = inputs["attention_mask"].bool()
    if mask_dims == 4:
        inputs["attention_mask"] = (real_tokens[:, None, :, None] & real_tokens[:, None, None, :]).long()

    def retained(model: Any) -> list[torch.Tensor]:
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        values = [*outputs.hidden_states[:-1], *outputs.attentions]
        for value in values:
            value.retain_grad()
        weight = torch.linspace(-1, 1, 32, dtype=torch.float64)
        (outputs.last_hidden_state[real_tokens] * weight).tanh().sum().backward()
        assert all(value.grad is not None for value in values)
        return [value.grad for value in values]

    expected = retained(plain)
    for found, wanted in zip(retained({"reference": plain, "fast": fast}[which]), expected, strict=True):
        assert wanted.any()
        counted = real_tokens[..., None]
        if found.dim() == 4:  # attentions: padded queries and keys differ by design
            counted = real_tokens[:, None, :, None] & real_tokens[:, None, None, :]
        assert_close(found * counted, wanted * counted)

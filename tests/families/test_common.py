"""transformers' common tests of models, on every class of BERT, ERNIE, XLM-R and XLM made padding-free."""

import fnmatch
import functools
import tempfile
import unittest
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.testing_utils import torch_device

from erniem_fast import padding_free, restore

pytest.importorskip("parameterized")
from helpers.transformers_source import SourceNotFoundError, modeling_common

try:
    ModelTesterMixin = modeling_common().ModelTesterMixin
except SourceNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.slow

Inputs = dict[str, torch.Tensor]
BATCH, LENGTH, VOCABULARY = 3, 7, 99
FURTHER_IDS = {"token_type_ids": "type_vocab_size", "task_type_ids": "task_type_vocab_size", "langs": "n_langs"}
"""Arguments of forwards, with the fields of configurations that say how many such ids there are."""


LEFT_OUT = {
    "asks for tests of generation, which the source distribution lacks": "test_generation_tester_mixin_inheritance",
    "about several configs, experts, rotations, tensor parallelism, images or sound": (
        "test_attn_implementation_composite* test_can_set_attention_dynamically_composite* test_*_dispatch_composite* "
        "test_internal_model_config_and_subconfig* test_encoder_decoder_loss* "
        "test_get_*_features* test_eager_matches_batched_and_grouped* test_moe_models* test_output_router_logits* "
        "test_sliding_window_mask test_*_rope* test_tied_head_has_a_tp_plan* test_tp_plan*"
    ),
    "about first values of weights": "test_can_init_all_missing_weights",
    "about weights under other names or of a fixed dtype, and positions to resize: there are none": (
        "test_can_load_from_already_mapped_keys test_reverse_loading_mapping test_keep_in_fp32_modules* "
        "test_resize_position_vector_embeddings"
    ),
    "about flash attention, flex attention, hub kernels, deepspeed, or compiling padded batches whole": (
        "test_flash_attn* test_sdpa_can_dispatch_on_flash test_flex_attention* test_kernels_can_load* "
        "test_*_deepspeed* test_torch_compile_for_training"
    ),
    "differs in torch's choice of a kernel for the models that ours are compared with": "test_eager_*_sdpa_kernels",
    "loads in seven dtypes and calls nothing, for seconds": "test_bc_torch_dtype",
}
"""Tests that can't concern how the families compute, by the reason."""


@contextmanager
def constructed_padding_free(classes: tuple[type[PreTrainedModel], ...]) -> Iterator[None]:
    """Whatever constructs or loads a model of one of `classes` gets it padding-free; the classes stay transformers'."""
    running = []

    def then_swapped(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(target: Any, *args: Any, **kwargs: Any) -> Any:
            running.append(target)
            try:
                result = function(target, *args, **kwargs)
            finally:
                running.pop()
            # Loading constructs, and a head constructs its encoder: only the outermost call hands a whole model out.
            model = target if result is None else result[0] if isinstance(result, tuple) else result
            if not running and type(model) in classes:
                padding_free(model)
            return result

        return call

    loading = classmethod(then_swapped(PreTrainedModel.from_pretrained.__func__))
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(PreTrainedModel, "from_pretrained", loading))
        for cls in classes:
            stack.enter_context(mock.patch.object(cls, "__init__", then_swapped(cls.__init__)))
        yield


class Family:
    """Small random models and inputs of one family, under the names that ModelTesterMixin reads."""

    batch_size, seq_length, num_choices = BATCH, LENGTH, 4
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4
    is_training = True

    def __init__(self, config_class: type[PreTrainedConfig], right_padded: bool = False, **sizes: Any) -> None:
        self.config_class = config_class
        self.right_padded = right_padded
        self.sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "hidden_size": 32} | sizes

    def get_config(self) -> PreTrainedConfig:
        return self.config_class(
            num_hidden_layers=self.num_hidden_layers, num_attention_heads=self.num_attention_heads, **self.sizes
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, Inputs]:
        """Rows padded right, left and in the middle, or all right, with the pad id where the mask hides."""
        config = self.get_config()
        mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
        mask[0, -2:] = mask[1, :2] = mask[2, 3] = 0
        if self.right_padded:
            mask = mask.sort(descending=True).values
        ids = torch.randint(5, VOCABULARY, (BATCH, LENGTH)).masked_fill(mask == 0, config.pad_token_id)
        inputs = {"input_ids": ids, "attention_mask": mask}
        for name, size in FURTHER_IDS.items():
            if getattr(config, size, 1) > 1:
                inputs[name] = torch.randint(getattr(config, size), (BATCH, LENGTH))
        return config, {name: value.to(torch_device) for name, value in inputs.items()}


def without(tests: dict[str, str]) -> Callable[[type], type]:
    """Hide tests of a class from collection: patterns of their names, by the reason."""

    def hide(cls: type) -> type:
        for name in dir(cls):
            if any(fnmatch.fnmatch(name, pattern) for patterns in tests.values() for pattern in patterns.split()):
                setattr(cls, name, None)
        return cls

    return hide


@without(LEFT_OUT)
class Common(ModelTesterMixin):
    """What the families' tests share."""

    family: Family
    additional_model_inputs = list(FURTHER_IDS)

    def setUp(self) -> None:
        self.model_tester = self.family
        self.enterContext(constructed_padding_free(self.all_model_classes))
        if self._testMethodName.startswith("test_eager_matches_sdpa_inference"):
            # Rows know one way, whatever its name. The model that would take another becomes transformers' own.
            restored = mock.patch.object(PreTrainedModel, "set_attn_implementation", lambda model, name: restore(model))
            self.enterContext(restored)

    def _prepare_for_class(self, inputs_dict: Inputs, model_class: type, return_labels: bool = False) -> Inputs:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class.__name__.endswith("ForPreTraining"):
            inputs["labels"] = torch.zeros_like(inputs["input_ids"])
            inputs["next_sentence_label"] = torch.zeros_like(inputs["input_ids"][:, 0])
        if return_labels and model_class is transformers.XLMForQuestionAnswering:
            inputs["start_positions"] = inputs["end_positions"] = torch.zeros_like(inputs["input_ids"][:, 0])
        return inputs

    def test_encoders_are_padding_free(self) -> None:
        """Guards the others against passing on models that nobody changed."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        padding = inputs["attention_mask"] == 0
        for model_class in self.all_model_classes:
            model = model_class(config)
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                loaded = model_class.from_pretrained(folder)
            for encoder in (model.base_model, loaded.base_model):
                assert type(encoder) is not self.all_model_classes[0]
                assert isinstance(encoder, self.all_model_classes[0])
                assert not encoder.eval().to(torch_device)(**inputs).last_hidden_state[padding].any()


def of(prefix: str, *names: str) -> tuple[type[PreTrainedModel], ...]:
    return tuple(getattr(transformers, prefix + name) for name in names)


TOKENS = ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering")
SEQUENCES = ("ForSequenceClassification", "ForMultipleChoice")
HEADS = ("Model", *TOKENS, *SEQUENCES)
PAIRS = ("ForNextSentencePrediction", "ForPreTraining")


class TestBert(Common, unittest.TestCase):
    family = Family(transformers.BertConfig, intermediate_size=37, type_vocab_size=5)
    all_model_classes = of("Bert", *HEADS, *PAIRS, "LMHeadModel")


class TestErnie(Common, unittest.TestCase):
    family = Family(
        transformers.ErnieConfig, intermediate_size=37, type_vocab_size=5, use_task_id=True, task_type_vocab_size=5
    )
    all_model_classes = of("Ernie", *HEADS, *PAIRS, "ForCausalLM")

    def _prepare_for_class(self, inputs_dict: Inputs, model_class: type, return_labels: bool = False) -> Inputs:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if model_class is transformers.ErnieForMultipleChoice:
            inputs.pop("task_type_ids", None)  # it crashes with them in transformers
        return inputs


class TestXLMRoberta(Common, unittest.TestCase):
    family = Family(transformers.XLMRobertaConfig, intermediate_size=37, type_vocab_size=5)
    all_model_classes = of("XLMRoberta", *HEADS, "ForCausalLM")

    def _prepare_for_class(self, inputs_dict: Inputs, model_class: type, return_labels: bool = False) -> Inputs:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if self._testMethodName == "test_inputs_embeds_matches_input_ids":
            # Positions skip pad ids, which embeddings don't show.
            inputs["position_ids"] = torch.arange(2, LENGTH + 2, device=torch_device).expand(BATCH, -1)
        return inputs


@without(
    {
        "look for the modules of layers, which XLM doesn't have": (
            "test_gradient_checkpointing_* test_training_gradient_checkpointing*"
        ),
        "pass over transformers' XLM: its attention has one form, its head another, and no hooks record its outputs": (
            "test_can_set_attention_dynamically test_can_load_ignoring_mismatched_shapes "
            "test_capture_outputs_decorator test_can_capture_specific_layers_hidden_states "
            "test_causal_lm_loss_honors_shift_labels"
        ),
    }
)
class TestXLM(Common, unittest.TestCase):
    family = Family(transformers.XLMConfig, n_langs=5)
    all_model_classes = of(
        "XLM", "Model", "WithLMHeadModel", "ForTokenClassification", "ForQuestionAnswering",
        "ForQuestionAnsweringSimple", *SEQUENCES,
    )  # fmt: skip

    def setUp(self) -> None:
        super().setUp()
        # transformers' XLM has neither, for which its tests would pass over ours.
        for flag in ("_supports_sdpa", "supports_gradient_checkpointing"):
            self.enterContext(mock.patch.object(transformers.XLMPreTrainedModel, flag, True))


class TestXLMCausal(TestXLM):
    family = Family(
        transformers.XLMConfig, right_padded=True, causal=True, gelu_activation=False, sinusoidal_embeddings=True
    )


class TestElectra(Common, unittest.TestCase):
    family = Family(transformers.ElectraConfig, intermediate_size=37, embedding_size=16, type_vocab_size=5)
    all_model_classes = of("Electra", *HEADS, "ForPreTraining", "ForCausalLM")


class TestDistilBert(Common, unittest.TestCase):
    family = Family(transformers.DistilBertConfig, hidden_dim=37)
    all_model_classes = of("DistilBert", *HEADS)


@without({"a decoder runs as transformers' own": "test_encoders_are_padding_free"})
class TestBertDecoder(Common, unittest.TestCase):
    family = Family(transformers.BertConfig, intermediate_size=37, type_vocab_size=5, is_decoder=True)
    all_model_classes = of("Bert", "Model", "LMHeadModel")

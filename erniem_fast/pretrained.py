"""Base class of the models: initialisation, loading and saving as transformers does them."""

import os
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.integrations.hub_kernels import is_kernel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, load_state_dict

from . import checkpoints
from .auto_map import SelfLoadingModel
from .configuration import ErnieMConfig
from .validation import warn_once


def _require_grad(module: nn.Module, args: Any, output: Tensor) -> None:
    if torch.is_grad_enabled() and not output.requires_grad:
        output.requires_grad_()


class ErnieMPreTrainedModel(SelfLoadingModel, PreTrainedModel):
    """Base of all ErnieM models.

    `from_pretrained` loads `.bin`, safetensors and sharded checkpoints, folders of transformers 4.x, a base model into
    a head and the reverse, and the key forms in `checkpoints`. A checkpoint with more encoder layers than the
    configuration is a ValueError, unless `ignore_mismatched_sizes=True` asks for the first layers only.
    `attn_implementation` takes transformers' names, and changes nothing: our attention is what runs.
    """

    config: ErnieMConfig
    config_class = ErnieMConfig
    base_model_prefix = "ernie_m"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ErnieMEncoderLayer", "ErnieMEmbeddings"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Self:
        """Load a folder, or a model of the Hugging Face Hub; see `PreTrainedModel.from_pretrained`.

        Raises:
            OSError: there are no weights. A folder of PaddleNLP's is to be converted first.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except OSError as error:
            name = pretrained_model_name_or_path
            endings = {file.suffix for file in Path(name).glob("*")} if isinstance(name, str | os.PathLike) else set()
            if ".pdparams" not in endings or endings & {".safetensors", ".bin"}:
                raise
            raise OSError(
                f"{os.fspath(name)!r} holds a Paddle checkpoint; `erniem-fast convert {os.fspath(name)} OUT` turns it "
                f"into a folder that loads"
            ) from error

    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        if type(module).__name__ == "ErnieMLMHead":
            initialization.zeros_(module.bias)

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Return "eager", whatever is asked for: no function of transformers is called.

        Raises:
            ValueError: transformers has no implementation of that name.
        """
        names = ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()]
        if requested_attention in (None, "eager"):
            return "eager"
        known = isinstance(requested_attention, str) and (
            requested_attention.removeprefix("paged|") in names or is_kernel(requested_attention)
        )
        if not known:
            raise ValueError(
                f"attn_implementation={requested_attention!r}: expected one of {', '.join(names)}, or a kernel on the "
                f"Hugging Face Hub (user/name)"
            )
        warn_once(
            f"attn_implementation={requested_attention!r} is accepted and changes nothing: erniem_fast's own attention "
            f"is what runs"
        )
        return "eager"

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, is_init_check: bool = False, **kwargs: Any
    ) -> str:
        # The base class looks for flash_attn and downloads kernels.
        return self.get_correct_attn_implementation(attn_implementation, is_init_check)

    def enable_input_require_grads(self) -> None:
        """Make the encoder's input require gradients, as adapters under reentrant checkpointing need.

        transformers calls this with any gradient checkpointing, and hooks the word embeddings. A hook there would
        keep them out of the fused operation, so the embedding modules of all encoders in this model are hooked.
        """
        self.disable_input_require_grads()
        self._require_grads_hooks = [
            module.embeddings.register_forward_hook(_require_grad)
            for module in self.modules()
            if isinstance(module, ErnieMPreTrainedModel) and hasattr(module, "embeddings")
        ]

    @staticmethod
    def _load_pretrained_model(
        model: Any,
        state_dict: dict[str, Tensor] | None,
        checkpoint_files: Any,
        load_config: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        # transformers 5 runs no state-dict hooks. Here it has found the files and not yet read them.
        if state_dict is not None:
            keys = list(state_dict)
        else:
            keys = [key for file in checkpoint_files or () for key in load_state_dict(file, map_location="meta")]
        if not load_config.ignore_mismatched_sizes:
            checkpoints.check_num_layers(keys, model.config.num_hidden_layers)
        if checkpoints.needs_conversion(keys):
            if state_dict is None:
                state_dict = {}
                for file in checkpoint_files:
                    state_dict.update(load_state_dict(file))
            state_dict = checkpoints.convert(state_dict)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        result = PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, *args, **kwargs
        )
        # Loaded parameters are new ones, all of which require gradients.
        for name, parameter in model.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)
        return result

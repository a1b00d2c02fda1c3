"""A sentence-transformers module that is packed from the tokenizer to the pooling: no batch is ever padded.

model = SentenceTransformer(modules=[Transformer(folder), Pooling(768, "mean")])
"""

import inspect
from typing import Any

import torch
from sentence_transformers.base import modules
from torch import nn
from transformers import DataCollatorWithFlattening

from .modeling import ErnieMModel
from .packed import PACKED_ARGUMENTS, PackedEncoder
from .padding_free import padding_free


class PackedFeatures(dict[str, Any]):
    """Features of a packed batch, which say what to do where a module asks for padded ones."""

    def __missing__(self, name: str) -> Any:
        raise KeyError(f"packed features hold no {name}; for what needs padded ones, set model[0].unpad_inputs = False")


class Flattening(DataCollatorWithFlattening):
    """transformers' collator, which would drop the token types of pairs."""

    def __call__(self, features: list[dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
        batch: dict[str, Any] = super().__call__(features, *args, **kwargs)
        if "token_type_ids" in features[0]:
            batch["token_type_ids"] = torch.tensor([[kind for one in features for kind in one["token_type_ids"]]])
        return batch


class Transformer(modules.Transformer):
    """An encoder for SentenceTransformer, CrossEncoder and SparseEncoder, on packed rows.

    It takes the place of sentence-transformers' own Transformer, with the same arguments, methods and saved files, for
    ErnieM and for every family that `padding_free` takes. A batch's texts become features without padding: `input_ids`,
    `position_ids`, `seq_idx` and, where the tokenizer gives them, `token_type_ids` (1, total_tokens), `cu_seq_lens_q`
    (num_texts + 1,) int32 and `max_length_q`. The model returns `token_embeddings` (1, total_tokens, hidden_size),
    which sentence-transformers' Pooling reads by `cu_seq_lens_q`, or `scores` (num_texts, num_labels).
    `unpad_inputs=False` pads the features, for modules that read `attention_mask`; the model still computes on real
    tokens only.

    A folder saved with this module names it in `modules.json`, and sentence-transformers then asks for
    `trust_remote_code=True`; nothing else needs to import this package.

    Args:
        model_name_or_path: folder or name of a checkpoint.
        kwargs: those of sentence-transformers' Transformer. `transformer_task` is "feature-extraction", or
            "sequence-classification" for a CrossEncoder, or "fill-mask" for a SparseEncoder.

    Raises:
        ValueError: the checkpoint holds a model of no such family.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The base class knows the rows of the position table, of which RoBERTa's kind leaves the first ones out.
        self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, self._encoder.limits.max_tokens)

    @property
    def _encoder(self) -> Any:
        return next(part for part in self.model.modules() if isinstance(part, ErnieMModel | PackedEncoder))

    def preprocess(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Make the features of texts or pairs, as sentence-transformers' own module does."""
        features = super().preprocess(*args, **kwargs)
        return PackedFeatures(features) if "cu_seq_lens_q" in features else features

    def _load_model(self, model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        model = super()._load_model(model_name_or_path, *args, **kwargs)
        if not isinstance(model, nn.Module):
            raise ValueError(f"backend must be 'torch', got one that makes a {type(model).__name__}")
        return padding_free(model)

    def _can_flatten_inputs(self) -> bool:
        """True: the model takes packed rows. The base class asks for an attention with "flash" in its name."""
        self.data_collator = Flattening(return_position_ids=True, return_seq_idx=True, return_flash_attn_kwargs=True)
        encoder = self._encoder
        self._flatten_position_offset = encoder.limits.first_position
        # Of the features, heads hand the packed ones on to the encoder; `seq_idx` is for the pooling alone.
        self.model_forward_params = {*inspect.signature(encoder.forward).parameters, *PACKED_ARGUMENTS}
        return True

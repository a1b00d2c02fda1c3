"""A sentence-transformers module that is packed from the tokenizer to the pooling: no batch is ever padded.

model = SentenceTransformer(modules=[Transformer(folder), Pooling(768, "mean")])
"""

import inspect
from typing import Any

from sentence_transformers.base import modules
from transformers import DataCollatorWithFlattening

from .modeling import ErnieMModel
from .pretrained import ErnieMPreTrainedModel


class PackedFeatures(dict[str, Any]):
    """Features of a packed batch, which say what to do where a module asks for padded ones."""

    def __missing__(self, name: str) -> Any:
        raise KeyError(f"packed features hold no {name}; for what needs padded ones, set model[0].unpad_inputs = False")


class Transformer(modules.Transformer):
    """ErnieM for SentenceTransformer, CrossEncoder and SparseEncoder, on packed rows.

    It takes the place of sentence-transformers' own Transformer, with the same arguments, methods and saved files. A
    batch's texts become features without padding: `input_ids`, `position_ids` and `seq_idx` (1, total_tokens),
    `cu_seq_lens_q` (num_texts + 1,) int32 and `max_length_q`. The model returns `token_embeddings` (1, total_tokens,
    hidden_size), which sentence-transformers' Pooling reads by `cu_seq_lens_q`, or `scores` (num_texts, num_labels).
    `unpad_inputs=False` pads the features, for modules that read `attention_mask`; the model still computes on real
    tokens only.

    A folder saved with this module names it in `modules.json`, and sentence-transformers then asks for
    `trust_remote_code=True`; nothing else needs to import this package.

    Args:
        model_name_or_path: folder or name of an ErnieM checkpoint.
        kwargs: those of sentence-transformers' Transformer. `transformer_task` is "feature-extraction", or
            "sequence-classification" for a CrossEncoder, or "fill-mask" for a SparseEncoder.

    Raises:
        ValueError: the checkpoint holds another kind of model.
    """

    def preprocess(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Make the features of texts or pairs, as sentence-transformers' own module does."""
        features = super().preprocess(*args, **kwargs)
        return PackedFeatures(features) if "cu_seq_lens_q" in features else features

    def _can_flatten_inputs(self) -> bool:
        """True: ErnieM takes packed rows. The base class asks for an attention with "flash" in its name."""
        if not isinstance(self.model, ErnieMPreTrainedModel):
            raise ValueError(
                f"model_name_or_path must name an ErnieM checkpoint, got one of a {type(self.model).__name__}"
            )
        self.data_collator = DataCollatorWithFlattening(
            return_position_ids=True, return_seq_idx=True, return_flash_attn_kwargs=True
        )
        self._flatten_position_offset = 0  # positions count from 0: the model itself adds its offset
        # Of the features, heads hand the packed ones on to the encoder; `seq_idx` is for the pooling alone.
        self.model_forward_params = set(inspect.signature(ErnieMModel.forward).parameters)
        return True

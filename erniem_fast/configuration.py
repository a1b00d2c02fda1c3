"""ErnieMConfig: every field and default of transformers 4.40.2, on transformers 5."""

from typing import Any, ClassVar

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .adapters import register_targets
from .auto_map import MODEL_TYPE, SelfLoadingConfig

POSITION_OFFSET = 2
"""Rows of the position table before position 0: position p reads row p + 2 (as in PaddleNLP)."""

POSITION_EMBEDDING_TYPES = ("absolute", "relative_key", "relative_key_query")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

MAX_LABELS = 2**20
"""Largest number of labels: four vocabularies. The names of many more fill the memory before any model is built."""


class ErnieMConfig(SelfLoadingConfig, PreTrainedConfig):
    """Configuration of an ErnieM model (arXiv 2012.15674); the defaults are those of ernie-m-base.

    A `config.json` written by transformers 4.x loads unchanged. Positional arguments keep 4.40.2's order.

    Args:
        vocab_size: rows of the word embedding table.
        hidden_size: width of the encoder, a multiple of `num_attention_heads`.
        num_hidden_layers: number of encoder layers, at least 1.
        num_attention_heads: attention heads a layer.
        intermediate_size: width between the two linear layers of the feed-forward block.
        hidden_act: name of an activation in transformers' `ACT2FN` (`"gelu"` is the exact, erf form), or a callable.
        hidden_dropout_prob: dropout after the embeddings and after each sub-layer, in [0, 1).
        attention_probs_dropout_prob: dropout on the attention probabilities, in [0, 1).
        max_position_embeddings: rows of the position table; sequences hold at most two tokens fewer.
        initializer_range: standard deviation of the normal initialiser.
        pad_token_id: id of [PAD].
        layer_norm_eps: epsilon of the layer-norms.
        classifier_dropout: dropout before a head's classifier; None: `hidden_dropout_prob`.
        act_dropout: dropout after the activation; None: `hidden_dropout_prob`.
        position_embedding_type: "absolute", "relative_key" or "relative_key_query" (both relative kinds are added
            to the absolute positions, as in 4.40.2).
        pruned_heads: layer index to the heads that were cut out of it; those layers are built smaller.
        id2label: label id to name, of at most `MAX_LABELS` labels; None: `num_labels` (2) numbered names.
        kwargs: those of `PreTrainedConfig`, among them `num_labels` and `problem_type`.

    Raises:
        ValueError: a value that is not described above, by name.
    """

    model_type = MODEL_TYPE
    attribute_map: ClassVar[dict[str, str]] = {"dropout": "classifier_dropout", "num_classes": "num_labels"}

    def __init__(
        self,
        vocab_size: int = 250002,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: Any = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 514,
        initializer_range: float = 0.02,
        pad_token_id: int = 1,
        layer_norm_eps: float = 1e-05,
        classifier_dropout: float | None = None,
        act_dropout: float | None = 0.0,
        *,
        position_embedding_type: str = "absolute",
        pruned_heads: dict | None = None,
        id2label: dict | None = None,
        is_decoder: bool = False,
        add_cross_attention: bool = False,
        use_cache: bool = True,
        tie_word_embeddings: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.pad_token_id = pad_token_id
        self.layer_norm_eps = layer_norm_eps
        self.classifier_dropout = classifier_dropout
        self.act_dropout = act_dropout
        self.position_embedding_type = position_embedding_type
        # JSON turns the layer numbers into strings.
        self.pruned_heads = {int(layer): sorted(set(heads)) for layer, heads in (pruned_heads or {}).items()}
        self.is_decoder = is_decoder
        self.add_cross_attention = add_cross_attention
        self.use_cache = use_cache
        self.tie_word_embeddings = tie_word_embeddings
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        _check_id2label(id2label)
        self._check()  # before the base class compares values that may not be comparable
        super().__init__(id2label=id2label, **kwargs)
        self._check()  # again: the base class has set aliases such as `dropout`
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {self.problem_type!r}")

    @PreTrainedConfig.num_labels.setter
    def num_labels(self, num_labels: int) -> None:
        _check_integer("num_labels", num_labels, 1, MAX_LABELS)  # before the base class names them all
        PreTrainedConfig.num_labels.fset(self, num_labels)

    def _check(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            _check_integer(name, getattr(self, name), 1)
        _check_integer("max_position_embeddings", self.max_position_embeddings, POSITION_OFFSET + 1)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, "
                f"got {self.hidden_size} and {self.num_attention_heads}"
            )
        optional = ("classifier_dropout", "act_dropout")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", *optional):
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
                raise ValueError(f"{name} must be a probability in [0, 1), got {value!r}")
        for name in ("initializer_range", "layer_norm_eps"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        pad = self.pad_token_id
        if pad is not None and not (isinstance(pad, int) and 0 <= pad < self.vocab_size):
            raise ValueError(f"pad_token_id must lie in [0, {self.vocab_size}) (vocab_size), got {pad!r}")
        if not callable(self.hidden_act) and self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {', '.join(sorted(ACT2FN))}, got {self.hidden_act!r}")
        if self.position_embedding_type not in POSITION_EMBEDDING_TYPES:
            raise ValueError(
                f"position_embedding_type must be one of {', '.join(POSITION_EMBEDDING_TYPES)}, "
                f"got {self.position_embedding_type!r}"
            )
        if self.is_decoder or self.add_cross_attention:
            raise ValueError("is_decoder and add_cross_attention must be False: ErnieM is an encoder")
        for layer, heads in self.pruned_heads.items():
            in_range = all(0 <= head < self.num_attention_heads for head in heads)
            if not 0 <= layer < self.num_hidden_layers or not in_range or len(heads) >= self.num_attention_heads:
                raise ValueError(
                    f"pruned_heads must map layers below {self.num_hidden_layers} to some, not all, of "
                    f"{self.num_attention_heads} heads, got {{{layer}: {heads}}}"
                )

    def to_dict(self) -> dict[str, Any]:
        # peft reads the configuration here before it looks up default target modules, and has no other door.
        register_targets()
        return super().to_dict()

    @property
    def max_tokens(self) -> int:
        """Largest number of tokens in one sequence."""
        return self.max_position_embeddings - POSITION_OFFSET


def _check_integer(name: str, value: object, least: int, most: float = float("inf")) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        accepted = f"of at least {least}" if most == float("inf") else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be an integer {accepted}, got {value!r}")


def _check_id2label(id2label: object) -> None:
    if id2label is None:
        return
    if not isinstance(id2label, dict):
        raise ValueError(f"id2label must be a dict of label ids and names, got {type(id2label).__name__}")
    _check_integer("the length of id2label", len(id2label), 1, MAX_LABELS)
    for key in id2label:
        if not str(key).isdecimal():  # JSON turns the ids into strings
            raise ValueError(f"id2label must map label ids, integers from 0, to names, got the id {key!r}")

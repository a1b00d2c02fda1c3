"""The parameter tree of ErnieM, names and shapes of transformers 4.40.2, without forwards.

`reference.py` and `modeling.py` subclass these modules, each with forwards of its own, so that the reference shares no
arithmetic with the model that it judges.
"""

from typing import Any

from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration import ErnieMConfig
from .pretrained import ErnieMPreTrainedModel


class ErnieMEmbeddings(nn.Module):
    """Tables of words (vocab_size, hidden_size) and positions (max_position_embeddings, hidden_size), and a norm."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        size, pad = config.hidden_size, config.pad_token_id
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=pad)
        # 4.40.2 gives the position table the padding id of the words.
        position_pad = pad if pad is not None and pad < config.max_position_embeddings else None
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size, padding_idx=position_pad)
        self.layer_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)


class ErnieMSelfAttention(nn.Module):
    """The projections of the heads that were not pruned, and relative positions if the configuration has them."""

    def __init__(self, config: ErnieMConfig, layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        pruned = config.pruned_heads.get(layer_index, [])
        self.kept_heads = [head for head in range(config.num_attention_heads) if head not in pruned]
        self.num_attention_heads = len(self.kept_heads)
        self.head_dim = config.hidden_size // config.num_attention_heads
        size = self.num_attention_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, size)
        self.k_proj = nn.Linear(config.hidden_size, size)
        self.v_proj = nn.Linear(config.hidden_size, size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.position_embedding_type = config.position_embedding_type
        if self.position_embedding_type != "absolute":
            self.max_position_embeddings = config.max_position_embeddings
            self.distance_embedding = nn.Embedding(2 * config.max_position_embeddings - 1, self.head_dim)


class ErnieMAttention(nn.Module):
    """The heads and the projection of their joined outputs."""

    self_attention_class: type[ErnieMSelfAttention] = ErnieMSelfAttention

    def __init__(self, config: ErnieMConfig, layer_index: int) -> None:
        super().__init__()
        self.self_attn = self.self_attention_class(config, layer_index)
        self.out_proj = nn.Linear(self.self_attn.q_proj.out_features, config.hidden_size)


class ErnieMEncoderLayer(GradientCheckpointingLayer):
    """A post-norm layer: attention, add and norm, feed-forward block, add and norm."""

    attention_class: type[ErnieMAttention] = ErnieMAttention

    def __init__(self, config: ErnieMConfig, layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        act_dropout = config.hidden_dropout_prob if config.act_dropout is None else config.act_dropout
        self.self_attn = self.attention_class(config, layer_index)
        self.linear1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dropout = nn.Dropout(act_dropout)
        self.linear2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout1 = nn.Dropout(config.hidden_dropout_prob)
        self.dropout2 = nn.Dropout(config.hidden_dropout_prob)
        self.activation = ACT2FN[config.hidden_act] if isinstance(config.hidden_act, str) else config.hidden_act


class ErnieMEncoder(nn.Module):
    """The layers."""

    layer_class: type[ErnieMEncoderLayer] = ErnieMEncoderLayer

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.layer_class(config, i) for i in range(config.num_hidden_layers))


class ErnieMPooler(nn.Module):
    """The dense layer and the tanh on a sequence's first token."""

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.Tanh()


class ErnieMModules(ErnieMPreTrainedModel):
    """Embeddings, encoder and pooler.

    Args:
        config: the configuration.
        add_pooling_layer: build the pooler.
    """

    embeddings_class: type[ErnieMEmbeddings] = ErnieMEmbeddings
    encoder_class: type[ErnieMEncoder] = ErnieMEncoder
    pooler_class: type[ErnieMPooler] = ErnieMPooler

    def __init__(self, config: ErnieMConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = self.embeddings_class(config)
        self.encoder = self.encoder_class(config)
        self.pooler = self.pooler_class(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embeddings.word_embeddings = value

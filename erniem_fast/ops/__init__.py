"""The fused operations, one file each: contract, checks, the torch path and the call of the kernel.

Everything is packed: the sequences of a batch lie end to end in `total_tokens` rows, and `cu_seqlens`
(num_sequences + 1,) int32 holds where each begins and ends. Operands are float32, float64, bfloat16 or float16; a
result has their dtype, or under autocast the dtype that autocast makes of it.

`dropout` is a `Dropout(p, seed, site)` or None. `seed` is a (1,) int64 tensor on the operands' device, drawn once a
forward (`draw_seed`); `site` tells the dropouts of one forward apart.

`backend` is "auto", "triton" or "torch"; see `backend.py`.
"""

from .activation import bias_activation_dropout
from .attention import AttentionPlan, attention_plan, varlen_attention
from .backend import BACKENDS, backend_after_move, is_batch_invariant, resolve_backend
from .dropout import Dropout, draw_seed
from .embedding import embedding_layer_norm
from .layer_norm import dropout_add_layer_norm
from .linear import add_linear, linear
from .linear_cross_entropy import linear_cross_entropy
from .mlp import mlp

__all__ = [
    "BACKENDS",
    "AttentionPlan",
    "Dropout",
    "add_linear",
    "attention_plan",
    "backend_after_move",
    "bias_activation_dropout",
    "draw_seed",
    "dropout_add_layer_norm",
    "embedding_layer_norm",
    "is_batch_invariant",
    "linear",
    "linear_cross_entropy",
    "mlp",
    "resolve_backend",
    "varlen_attention",
]

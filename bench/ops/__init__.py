"""Benchmarks of the operations: for each one file with inputs, least work and providers."""

from .activation import ACTIVATION
from .attention import ATTENTION
from .embedding import EMBEDDING
from .layer_norm import LAYER_NORM
from .linear import LINEAR
from .linear_cross_entropy import LINEAR_CROSS_ENTROPY
from .mlp import MLP

BENCHMARKS = (ATTENTION, LAYER_NORM, ACTIVATION, EMBEDDING, MLP, LINEAR, LINEAR_CROSS_ENTROPY)
"""The most important first."""

"""Benchmarks of the operations: for each one file with inputs, least work and providers."""

from .activation import ACTIVATION
from .attention import ATTENTION
from .embedding import EMBEDDING
from .layer_norm import LAYER_NORM
from .linear import LINEAR
from .mlp import MLP

BENCHMARKS = (ATTENTION, LAYER_NORM, ACTIVATION, EMBEDDING, MLP, LINEAR)
"""The most important first."""

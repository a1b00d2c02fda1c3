"""What a sentence-transformers folder may list behind its pooling: Dense, LayerNorm, Normalize, Dropout.

module, width = build("Dense", config, read_weights, width=768)

Each module maps (num_texts, width) float32 to (num_texts, new width). sentence-transformers itself is not needed.
"""

from collections.abc import Callable, Mapping
from typing import Any, overload

import torch.nn.functional as F
from torch import Tensor, nn

LEFT_OUT = ("Threshold", "MultiheadAttention", "GLU", "Softmax2d")
"""Activations that need arguments, or that take or give another shape."""
ACTIVATIONS = {name: getattr(nn, name) for name in (*nn.modules.activation.__all__, "Identity") if name not in LEFT_OUT}
"""Class of an activation by its name in torch.nn."""
EMBEDDING = "sentence_embedding"
"""What sentence-transformers calls a text's vector."""


class Dense(nn.Module):
    """activation(x W^T + b), plus x itself or its projection where it has a residual connection.

    The attributes' names are those of the weights.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool, activation_function: nn.Module, use_residual: bool
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias)
        self.activation_function = activation_function
        self.use_residual = use_residual
        self.residual: nn.Module = nn.Identity()
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        out: Tensor = self.activation_function(self.linear(vectors))
        return out + self.residual(vectors) if self.use_residual else out


class LayerNorm(nn.Module):
    """Layer-norm of each vector."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimension)

    def forward(self, vectors: Tensor) -> Tensor:
        out: Tensor = self.norm(vectors)
        return out


class Normalize(nn.Module):
    """Scale each vector to length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)


def activation(path: object) -> nn.Module:
    """Make an activation of torch from its dotted path; nothing is imported for it.

    Raises:
        ValueError: anything else than a class of torch.nn.modules.activation that needs no argument, or
            torch.nn.Identity.
    """
    name = path.rsplit(".", 1)[-1] if isinstance(path, str) else ""
    found = ACTIVATIONS.get(name)
    if found is None or path not in (f"torch.nn.{name}", f"{found.__module__}.{name}"):
        raise ValueError(f"unknown activation function {path!r:.200}; known are torch.nn's {', '.join(ACTIVATIONS)}")
    made: nn.Module = found()
    if isinstance(made, nn.Softmax | nn.Softmin | nn.LogSoftmax):
        made.dim = -1  # of (num_texts, width); without it torch warns
    return made.eval()


def build(
    kind: str, config: dict[str, Any], read_weights: Callable[[], Mapping[str, Tensor]], width: int
) -> tuple[nn.Module | None, int]:
    """Build a module in eval mode, with float32 weights.

    Args:
        kind: a key of `BUILDERS`.
        config: what its config.json holds.
        read_weights: gives its weights by name, of any floating dtype; not called for a module without any.
        width: of the vectors that it gets.

    Returns:
        The module, or None where it changes nothing, and the width of the vectors that it gives.

    Raises:
        ValueError: a setting that we don't know, another width, weights that are missing or of other shapes.
    """
    module, width = BUILDERS[kind](config, width)
    wanted = {} if module is None else module.state_dict()
    weights = read_weights() if wanted else {}
    if wanted.keys() != weights.keys():
        raise ValueError(f"weights must be {', '.join(wanted)}; got {', '.join(weights) or 'none'}")
    for name in wanted:
        if weights[name].shape != wanted[name].shape:
            raise ValueError(
                f"{name} must have shape {tuple(wanted[name].shape)}, got {tuple(weights[name].shape)} in its weights"
            )
    if module is not None:
        module.load_state_dict(weights)
        module.eval().requires_grad_(False)
    return module, width


def check_keys(config: object, known: tuple[str, ...], prefix: str = "") -> None:
    """Refuse settings that we don't know: they might change the vectors.

    Raises:
        ValueError: naming them.
    """
    if not isinstance(config, dict):
        raise ValueError(f"{prefix.rstrip('.')} must be an object, got {config!r:.80}")
    unknown = sorted(str(name) for name in config.keys() - {*known})
    if unknown:
        raise ValueError(
            f"unknown setting {', '.join(prefix + name for name in unknown)}; known are {', '.join(known)}"
        )


@overload
def check_size(config: dict[str, Any], name: str) -> int: ...
@overload
def check_size(config: dict[str, Any], name: str, default: None) -> int | None: ...
def check_size(config: dict[str, Any], name: str, default: object = ...) -> int | None:
    """Read a number of at least 1; null is None where None is the default."""
    size = config.get(name, default)
    if size is None and default is None:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"{name} must be an int of at least 1, got {'nothing' if size is ... else repr(size)}")
    return size


def check_flag(config: dict[str, Any], name: str, default: bool) -> bool:
    """Read true or false."""
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r:.80}")
    return value


def _check_names(config: dict[str, Any]) -> None:
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) not in (None, EMBEDDING):
            raise ValueError(f"{name} must be {EMBEDDING!r}, got {config[name]!r}")


def _check_width(config: dict[str, Any], name: str, width: int) -> None:
    if check_size(config, name) != width:
        raise ValueError(f"{name} must be {width}, the width of the vectors before it, got {config[name]}")


def _dense(config: dict[str, Any], width: int) -> tuple[nn.Module, int]:
    names = ("module_input_name", "module_output_name")
    check_keys(config, ("in_features", "out_features", "bias", "activation_function", "use_residual", *names))
    _check_names(config)
    _check_width(config, "in_features", width)
    made = check_size(config, "out_features")
    bias, residual = check_flag(config, "bias", True), check_flag(config, "use_residual", False)
    return Dense(width, made, bias, activation(config.get("activation_function", "torch.nn.Tanh")), residual), made


def _layer_norm(config: dict[str, Any], width: int) -> tuple[nn.Module, int]:
    check_keys(config, ("dimension",))
    _check_width(config, "dimension", width)
    return LayerNorm(width), width


def _normalize(config: dict[str, Any], width: int) -> tuple[nn.Module, int]:
    check_keys(config, ("module_input_name", "module_output_name"))
    _check_names(config)
    return Normalize(), width


def _dropout(config: dict[str, Any], width: int) -> tuple[None, int]:
    return None, width


BUILDERS: dict[str, Callable[[dict[str, Any], int], tuple[nn.Module | None, int]]] = {
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": _normalize,
    "Dropout": _dropout,
}

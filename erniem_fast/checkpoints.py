"""Conversion of published checkpoints to the parameter names of transformers 4.40.2. Dict in, dict out."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

RENAMES = (
    # PaddleNLP's projections lie in one module, 4.40.2's in two.
    (re.compile(r"(\blayers\.\d+\.self_attn)\.(?=[qkv]_proj\.)"), r"\1.self_attn."),
)
FUSED_PROJECTION = re.compile(r"(\blayers\.\d+\.self_attn)(?:\.self_attn)?\.in_proj_(weight|bias)$")
"""PyTorch's fused projection, as an early conversion kept it: q, k and v one below the other."""
LAYER = re.compile(r"\bencoder\.layers\.(\d+)\.")


def needs_conversion(keys: Iterable[str]) -> bool:
    """True if `convert` changes any of the keys."""
    return any(FUSED_PROJECTION.search(key) or _rename(key) != key for key in keys)


def convert(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict with 4.40.2's parameter names.

    Prefixes (`ernie_m.`) stay: `from_pretrained` adds and drops them. Unknown keys stay too: it reports them.

    Args:
        state_dict: parameter name to tensor. Not changed.

    Raises:
        ValueError: two keys give the same parameter, or a fused projection cannot be split in three.
    """
    converted: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        fused = FUSED_PROJECTION.search(key)
        if fused is None:
            parts = {_rename(key): tensor}
        elif tensor.dim() == 0 or tensor.shape[0] % 3:
            raise ValueError(f"{key} must hold q, k and v in equal parts, got shape {tuple(tensor.shape)}")
        else:
            names = (f"{fused[1]}.self_attn.{letter}_proj.{fused[2]}" for letter in "qkv")
            parts = {key[: fused.start()] + name: part for name, part in zip(names, tensor.chunk(3), strict=True)}
        for name, part in parts.items():
            if name in converted:
                raise ValueError(f"the checkpoint holds {name} twice, once as {key}")
            converted[name] = part
    return converted


def check_num_layers(keys: Iterable[str], num_hidden_layers: int) -> None:
    """Refuse parameters of encoder layers that the model does not have.

    Raises:
        ValueError: a key names layer `num_hidden_layers` or a later one.
    """
    layers = {int(match[1]) for match in map(LAYER.search, keys) if match}
    if layers and max(layers) >= num_hidden_layers:
        raise ValueError(
            f"num_hidden_layers is {num_hidden_layers} in the configuration, but the checkpoint holds "
            f"{max(layers) + 1} encoder layers. Set num_hidden_layers={max(layers) + 1}, or load the first "
            f"{num_hidden_layers} only with ignore_mismatched_sizes=True"
        )


def _rename(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = pattern.sub(replacement, key)
    return key

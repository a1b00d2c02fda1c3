"""Checkpoints in the wild to our parameter names, which are those of transformers 4.40.2. Dict in, dict out."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

RENAMES = (
    # PaddleNLP names its projections without the doubled module.
    (re.compile(r"(\blayers\.\d+\.self_attn)\.(?=[qkv]_proj\.)"), r"\1.self_attn."),
)
FUSED_PROJECTION = re.compile(r"(\blayers\.\d+\.self_attn)(?:\.self_attn)?\.in_proj_(weight|bias)$")
"""An early conversion kept PyTorch's fused projection: q, k and v one below the other."""


def needs_conversion(keys: Iterable[str]) -> bool:
    """Whether any key has a form that `convert` changes."""
    return any(FUSED_PROJECTION.search(key) or _rename(key) != key for key in keys)


def convert(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring a state dict to 4.40.2's parameter names.

    Prefixes (`ernie_m.`) are left as they are: `from_pretrained` adds and drops them. Keys that no table knows
    pass unchanged, so that they are reported where the model is loaded.

    Args:
        state_dict: parameter name to tensor. Not changed.

    Raises:
        ValueError: two keys give the same parameter, or a fused projection can't be split in three.
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


def _rename(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = pattern.sub(replacement, key)
    return key

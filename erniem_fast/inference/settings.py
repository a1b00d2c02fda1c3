"""What a sentence-transformers folder says about how its vectors are made."""

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn


class Normalize(nn.Module):
    """Scale each vector to length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=1)


@dataclass(frozen=True)
class SentenceSettings:
    """Settings of a folder; the defaults are those of a plain checkpoint."""

    pooling: tuple[str, ...] = ("mean",)
    modules: tuple[nn.Module, ...] = ()
    max_seq_length: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    include_prompt: bool = True
    lowercase: bool = False
    activation: nn.Module | None = None
    similarity: str | None = None
    truncate_dim: int | None = None
    model_folder: str = ""


def read_settings(name: str) -> SentenceSettings:
    """Read the settings of a folder or of an id on the Hub."""
    return SentenceSettings()

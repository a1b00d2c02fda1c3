"""The layers of the encoders in a model."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..layer_parts import LayerParts
from ..modeling import ErnieMModel
from ..packed import PackedEncoder


def layers_of(model: nn.Module) -> Iterator[LayerParts]:
    """Parts of each layer of every encoder, ErnieM's or one that is padding-free."""
    for encoder in model.modules():
        if isinstance(encoder, ErnieMModel):
            layers: Any = encoder.encoder.layers
            yield from (layer.parts() for layer in layers)
        elif isinstance(encoder, PackedEncoder):
            yield from (encoder.parts(index) for index in range(len(encoder.layer_stack)))

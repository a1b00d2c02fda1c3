"""Parameter groups of an optimizer with layer-wise decay of the learning rate.

groups = parameter_groups(model, learning_rate=5e-5, layer_decay=0.8, weight_decay=0.01)
optimizer = torch.optim.AdamW(groups)

Source: discriminative fine-tuning (Howard and Ruder, arXiv 1801.06146), as ERNIE-M's authors use it.
"""

from typing import Any

from torch import nn

from ..modeling import ErnieMModel
from ..packed import PackedEncoder


def parameter_groups(
    model: nn.Module, learning_rate: float, layer_decay: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Group every trainable parameter by its depth, and by whether its weight decays.

    What is above the encoder's layers (heads, poolers) learns at `learning_rate`, the last layer at
    `learning_rate * layer_decay`, the one below at `learning_rate * layer_decay**2`, and so on; what is below the first
    layer, the embeddings, is one step deeper than that layer. Biases and the parameters of norms have no weight decay.

    Args:
        model: an ErnieM model, or one that `padding_free` has changed, with or without a head or adapters.
        learning_rate: that of the head.
        layer_decay: factor from one layer to the one below, in (0, 1]; 1: one rate for all.
        weight_decay: of the others.

    Returns:
        Groups as torch's optimizers take them, the head's first; none is empty, and each trainable parameter is in
        one.

    Raises:
        ValueError: there is no such encoder in the model, nothing to train, or a factor that is out of range.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay!r}")
    depths = _depths(model)
    undecayed = _undecayed(model)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():  # each once, however often it is shared
        if parameter.requires_grad:
            groups.setdefault((depths.get(parameter, 0), parameter in undecayed), []).append(parameter)
    if not groups:
        raise ValueError("model must have parameters that require gradients, got none")
    return [
        {
            "params": groups[depth, plain],
            "lr": learning_rate * layer_decay**depth,
            "weight_decay": 0.0 if plain else weight_decay,
        }
        for depth, plain in sorted(groups)
    ]


def _depths(model: nn.Module) -> dict[nn.Parameter, int]:
    """Steps below the head of each parameter of the encoder; the last layer is one below."""
    encoder = next((one for one in model.modules() if isinstance(one, ErnieMModel | PackedEncoder)), None)
    if encoder is None:
        raise ValueError(f"model must hold an ErnieM or padding_free encoder, got {type(model).__name__}")
    layers = encoder.encoder.layers if isinstance(encoder, ErnieMModel) else encoder.layer_stack
    pooler = getattr(encoder, "pooler", None)
    above = set() if pooler is None else set(pooler.parameters())
    # Whatever is no layer is below them: tables, their norm, and ELECTRA's projection. A word table that a masked-LM
    # head shares stays a table.
    depths = dict.fromkeys((one for one in encoder.parameters() if one not in above), len(layers) + 1)
    for index, layer in enumerate(layers):
        depths.update(dict.fromkeys(layer.parameters(), len(layers) - index))
    return depths


def _undecayed(model: nn.Module) -> set[nn.Parameter]:
    """Biases and parameters of norms: all that are vectors."""
    return {parameter for parameter in model.parameters() if parameter.dim() < 2}

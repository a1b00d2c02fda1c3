"""Say how a model would be computed: what is fused, what is called as it is, and why."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from . import fusion, modeling
from .layer_parts import AttentionParts, LayerParts
from .packed import PackedEncoder
from .packed_heads import PackedMaskedLM
from .padding_free import other_models

ON_ROWS = "on packed rows"


def explain(model: nn.Module) -> str:
    """Say, for each encoder and layer of a model, what is fused and what is called as it is, and why.

    What is said holds for a call without further wishes: `output_attentions`, masks of 3 or 4 dimensions and caches
    change it, and are said through `logging` when they come.

    Args:
        model: any module; see `padding_free`.

    Returns:
        Lines of text.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return "\n".join(_lines(model)) or f"{type(model).__name__}: holds no encoder of transformers"


def _lines(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        title = f"{name or 'model'} ({type(module).__name__})"
        if isinstance(module, PackedEncoder):
            yield from _explain_encoder(title, module, module.reason_not_packed({}), _layers(module))
        elif isinstance(module, modeling.ErnieMModel):
            yield from _explain_encoder(title, module, None, _of_ernie_m(module.encoder.layers))
        elif isinstance(module, PackedMaskedLM):
            rows = "labelled tokens" if module.loss_only else "real tokens"
            yield f"{title}: projects {rows} only"
    for title in other_models(model):
        yield f"{title}: transformers' own, padding included"


def _explain_encoder(
    title: str, encoder: Any, reason: str | None, layers: list[tuple[LayerParts | None, str | None]]
) -> Iterator[str]:
    if reason is not None:
        yield f"{title}: transformers' own, padding included: {reason}"
        return
    yield f"{title}: {ON_ROWS}, backend {encoder.backend}"
    names = {id(module): name for name, module in encoder.named_modules()}
    said = [(why or _say_parts(parts, names), index) for index, (parts, why) in enumerate(layers)]
    for text, group in groupby(said, key=lambda item: item[0]):
        numbers = [index for _, index in group]
        yield f"  layer{'s' if len(numbers) > 1 else ''} {_span(numbers)}: {text}"


def _layers(encoder: PackedEncoder) -> list[tuple[LayerParts | None, str | None]]:
    """Parts of each layer, or the reason why it is computed by transformers."""
    found: list[tuple[LayerParts | None, str | None]] = []
    for index, layer in enumerate(encoder.layer_stack):
        reason = encoder.reason_for_grid(layer)
        parts = None if reason else encoder.parts(index)
        found.append((parts, f"transformers' own, on padded tokens: {reason}" if reason else None))
    return found


def _of_ernie_m(layers: Any) -> list[tuple[LayerParts | None, str | None]]:
    return [(layer.parts(), None) for layer in layers]


def _say_parts(parts: LayerParts | None, names: dict[int, str]) -> str:
    assert parts is not None
    called: dict[str, list[str]] = {}
    for module in parts.modules():
        if not fusion.is_fused(module):
            called.setdefault(_why(module), []).append(_short(names.get(id(module), "activation")))
    dense = isinstance(parts.attention, AttentionParts) and parts.attention.relative_scores is not None
    notes = ["attention is dense: relative positions"] if dense else []
    notes += [f"called as it is: {', '.join(found)} ({why})" for why, found in called.items()]
    return f"{ON_ROWS}; {'; '.join(notes)}" if notes else f"{ON_ROWS}, all fused"


def _short(name: str) -> str:
    """Name of a part without the path of its layer."""
    pieces = name.split(".")
    numbers = [place for place, piece in enumerate(pieces) if piece.isdigit()]
    return ".".join(pieces[numbers[0] + 1 :]) if numbers and numbers[0] + 1 < len(pieces) else name


def _why(module: nn.Module) -> str:
    home, name = type(module).__module__, type(module).__name__
    package = ".".join(home.split(".")[: 4 if home.startswith("torch.ao.") else 1])
    kind = f"{package}'s {name}"
    if not fusion.may_bypass(module):
        return f"{kind} with hooks"
    weight = type(getattr(module, "weight", None))
    # Quantised and sharded weights are subclasses of Tensor.
    special = issubclass(weight, Tensor) and weight not in (Tensor, nn.Parameter)
    return f"{kind} whose weight is of {weight.__name__}" if special else kind


def _span(numbers: list[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])

"""Transformers' encoders made padding-free in place, and back.

model = padding_free(AutoModel.from_pretrained("intfloat/multilingual-e5-base"))
"""

import logging
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from .modeling import ErnieMModel
from .packed import SWAPS, PackedEmbeddings, PackedEncoder, PackedLayer, Swapped

logger = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)


def padding_free(model: M) -> M:
    """Make the encoders in a model compute on real tokens only.

    Encoders, their layers and their heads become subclasses of their own classes of the same name, in place.
    Parameters, their names, configuration, tokenizer and what is saved stay as they are. What is not computed on packed
    rows (attention probabilities, masks of 3 or 4 dimensions, decoders and their caches, modules with hooks) is left to
    transformers' own forward, which is said once through `logging`.

    Args:
        model: a model of transformers, or any module that holds some: a SentenceTransformer, a CrossEncoder, a peft
            model. ErnieM models are padding-free already.

    Returns:
        The same object.

    Raises:
        TypeError: `model` is no module.
        ValueError: it holds no encoder of a supported family, or it is compiled.
    """
    _check(model)
    from . import families, xlm  # noqa: F401  (they fill SWAPS)

    encoders = {module for module in model.modules() if type(module) in SWAPS and _is(module, PackedEncoder)}
    done = {module for module in model.modules() if isinstance(module, PackedEncoder | ErnieMModel)}
    if not encoders and not done:
        raise ValueError(f"model must hold an encoder of {', '.join(_supported())}; {_found(model)}")
    for module in encoders:
        _swap(module)
        for inner in module.modules():
            if _is(inner, PackedEmbeddings) or _is(inner, PackedLayer):
                _swap(inner)
    for module in model.modules():
        # A head, which asks of its encoder what only a padding-free one gives.
        if type(module) in SWAPS and getattr(module, "base_model", None) in encoders | done:
            _swap(module)
    stayed = other_models(model)
    if stayed:
        logger.warning("padding_free leaves %s unchanged: no supported family.", ", ".join(stayed))
    return model


def restore(model: M) -> M:
    """Give the modules that `padding_free` changed their own classes back.

    Args:
        model: any module.

    Returns:
        The same object.
    """
    _check(model)
    for module in model.modules():
        if isinstance(module, Swapped):
            _become(module, module.original)
            for name in ("backend", "loss_only"):
                module.__dict__.pop(name, None)
    return model


def _check(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None:
            where = f" at {name}" if name else ""
            raise ValueError(f"model must not be compiled yet, got a compiled {type(module).__name__}{where}")
        if _is(module, PackedEncoder) and "forward" in module.__dict__ and "_old_forward" not in module.__dict__:
            raise ValueError(f"model must have no replaced forward, got a {type(module).__name__} with one at {name!r}")


def _is(module: nn.Module, base: type[Swapped]) -> bool:
    """True if the class that takes the place of the module's own is a `base`."""
    return issubclass(SWAPS.get(type(module), type(module)), base)


def _swap(module: nn.Module) -> None:
    _become(module, SWAPS.get(type(module), type(module)))


def _become(module: nn.Module, cls: type[nn.Module]) -> None:
    before: Any = type(module)
    module.__class__ = cls  # type: ignore[assignment]
    # accelerate's hooks keep the bound forward that they found.
    kept = module.__dict__.get("_old_forward")
    if getattr(kept, "__func__", None) is before.forward:
        module.__dict__["_old_forward"] = MethodType(cls.forward, module)


def _supported() -> list[str]:
    """Names of the encoders that can be made padding-free."""
    return sorted(cls.__name__ for cls in SWAPS if issubclass(SWAPS[cls], PackedEncoder))


def _found(model: nn.Module) -> str:
    """What there is instead of a supported encoder."""
    for module in model.modules():
        for parent in type(module).__mro__[1:]:
            if parent in SWAPS and issubclass(SWAPS[parent], PackedEncoder):
                return f"got {type(module).__name__}, a subclass of {parent.__name__}, which may compute anything else"
    return f"got {type(model).__name__}"


def other_models(model: nn.Module) -> list[str]:
    """Names of transformers' models inside, that neither are padding-free, nor hold or belong to one that is."""
    inside = {child for module in model.modules() if isinstance(module, PackedEncoder | ErnieMModel)
              for child in module.modules()}  # fmt: skip
    names = []
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and module not in inside and inside.isdisjoint(module.modules()):
            inside |= set(module.modules())
            names.append(f"{name or 'model'} ({type(module).__name__})")
    return names

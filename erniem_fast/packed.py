"""Base classes of transformers' encoders and layers that compute on packed rows.

A class of `families` or `xlm` joins one of these with a class of transformers. It has transformers' parameters, name
and signature, and what it does not compute on rows it leaves to transformers' forward.
"""

import functools
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.utils import output_capturing

from . import encoder, fusion
from .encoder import PackedModelOutput
from .fusion import PackedContext
from .inputs import pack_input
from .layer_parts import LayerParts
from .outputs import OutputOptions
from .packing import PackedBatch
from .validation import Limits, ValueCheck, count_packed, warn_once

PACKED_ARGUMENTS = (
    "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "validate", "padded_shape", "prefix_lens",
)  # fmt: skip
ORDERS = ("value_checks", "return_packed", "scores_sequences", "refusal")
"""Further arguments that transformers' forward does not take."""
SELECTS_STATES = hasattr(output_capturing, "resolve_hidden_states_indices")
"""True if indices in `output_hidden_states` count all hidden states; older releases count the layers' outputs."""
ATTENTIONS = (None, "eager", "sdpa", "flex_attention")
"""Implementations of attention, besides those of flash attention, that compute the same."""
INFRASTRUCTURE = (fusion.CAPTURE, "torch.distributed.", "accelerate.")
"""Modules whose hooks move or gather parameters, or are idle: such a hook sees no result that its owner would miss."""


SWAPS: dict[type[nn.Module], type["Swapped"]] = {}
"""Classes that take the place of transformers', by those; `families` and `xlm` fill it."""


def is_packed(given: dict[str, Any]) -> bool:
    """True if the arguments of a forward are packed input."""
    names = ("cu_seq_lens_q", "prefix_lens")
    return isinstance(given.get("input_ids"), PackedBatch) or any(given.get(name) is not None for name in names)


class Swapped(nn.Module):
    """A class that takes the place of its transformers parent, with the parent's name and signature.

    Subclasses name `forward_on_rows`, which takes the arguments of `forward` by name.
    """

    original: ClassVar[type[nn.Module]]
    """Class of transformers that it takes the place of."""

    def __init_subclass__(cls, original: type[nn.Module] | None = None, **kwargs: Any) -> None:
        if original is not None:
            cls.original = original
            SWAPS[original] = cls
            cls.__doc__ = f"{original.__name__} of transformers on packed rows."
        super().__init_subclass__(**kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in self.modules():  # which its parent makes
            if type(module) in SWAPS:
                module.__class__ = SWAPS[type(module)]

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: transformers' conversions of checkpoints apply."""
        return False


def by_name(cls: type[Swapped]) -> type[Swapped]:
    """Give a class a `forward` with its parent's signature that hands all arguments on to `forward_on_rows` by name."""
    parent: Any = cls.original.forward
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [name for name, parameter in inspect.signature(parent).parameters.items() if parameter.kind is kind][1:]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) > len(names):
            raise TypeError(f"{cls.__name__} takes at most {len(names)} arguments without a name, got {len(args)}")
        return self.forward_on_rows(**dict(zip(names, args, strict=False)), **kwargs)

    # Each class has code of its own: torch.compile gives up on one that it has compiled eight times.
    forward.__code__ = forward.__code__.replace(co_qualname=f"{cls.__name__}.forward")
    cls.forward = functools.wraps(parent)(forward)
    # Keyed by name. Without an entry transformers' own forward would record neither states nor probabilities.
    records = getattr(cls, "_can_record_outputs", None)
    if records is not None:
        dict.__setitem__(output_capturing._CAN_RECORD_REGISTRY, str(cls), records)
    return cls


class Containers(NamedTuple):
    """Modules that are passed by, as (name, module, class that it must be)."""

    items: Sequence[tuple[str, nn.Module, type[nn.Module]]]

    def reason_to_call(self) -> str | None:
        """Reason why one of them must be called, or None."""
        if fusion.has_global_hooks():
            return "every module has hooks, as a FLOP counter's"
        for name, module, cls in self.items:
            # FSDP2 makes subclasses of ours, which were the exact class when they were swapped.
            if not (isinstance(module, cls) if issubclass(cls, Swapped) else type(module) is cls):
                return f"{name} was replaced by a {type(module).__name__}"
            if not is_unwatched(module):
                return f"{name} has hooks"
        return None


def is_unwatched(module: nn.Module) -> bool:
    """True if nobody's hooks see what the module takes and gives."""
    if fusion.may_bypass(module):
        return True
    if fusion.has_global_hooks():
        return False
    members = module.__dict__
    hooks = [*members["_forward_hooks"].values(), *members["_forward_pre_hooks"].values()]
    hooks += [*members["_backward_hooks"].values(), *members["_backward_pre_hooks"].values()]
    replaced = [members["forward"]] if "forward" in members else []
    return all(_home(function).startswith(INFRASTRUCTURE) for function in hooks + replaced)


def _home(function: Any) -> str:
    function = function.func if isinstance(function, functools.partial) else function
    return str(getattr(function, "__module__", ""))


class PackedEmbeddings(Swapped):
    """Embeddings whose `forward` takes a PackedContext; on any other arguments it is transformers'."""

    def rows(self, context: PackedContext) -> Tensor:
        """(total_tokens,) tokens to (total_tokens, hidden_size)."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], PackedContext):
            return self.rows(args[0])
        return super().forward(*args, **kwargs)


class PackedLayer(Swapped):
    """A layer whose `forward` takes packed rows and a PackedContext; on any other arguments it is transformers'."""

    def parts(self, index: int) -> LayerParts:
        """Parts of the layer, which is the `index`th."""
        raise NotImplementedError

    def containers(self) -> Containers:
        """Modules that hold the parts."""
        raise NotImplementedError

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(total_tokens, hidden_size), a PackedContext and the layer's index to the rows to keep."""
        if args and isinstance(args[0], PackedContext):
            context, index = args
            return encoder.run_layer(self.parts(index), hidden_states, context)[0]
        return super().forward(hidden_states, *args, **kwargs)


class PackedEncoder(Swapped):
    """An encoder that packs its input once and computes on real tokens only.

    `backend` picks the implementation of the fused operations: "auto", "triton" or "torch" (see `ops`).
    """

    backend = "auto"
    layer_class: ClassVar[type[PackedLayer]]
    config: Any

    # What a family says.

    @property
    def limits(self) -> Limits:
        """Bounds of the input."""
        raise NotImplementedError

    @property
    def layer_stack(self) -> Sequence[nn.Module]:
        """The layers, in order. Libraries such as peft take a model with an attribute `layers` for a Llama."""
        raise NotImplementedError

    @property
    def position_table(self) -> nn.Embedding:
        """The position embeddings."""
        raise NotImplementedError

    @property
    def num_heads(self) -> int:
        """Heads of each layer."""
        raise NotImplementedError

    def containers(self) -> Containers:
        """Modules that hold others and are passed by, the layers excepted."""
        raise NotImplementedError

    def embed(self, context: PackedContext) -> Tensor:
        """(total_tokens,) tokens to (total_tokens, hidden_size)."""
        raise NotImplementedError

    def pool(self, first: Tensor) -> Tensor | None:
        """(num_sequences, hidden_size) first tokens to the pooled output of that shape; None without a pooler."""
        return None

    def reason_not_packed(self, given: dict[str, Any]) -> str | None:
        """Reason why transformers' own forward must compute a call with these arguments, or None."""
        config = self.config
        if getattr(config, "is_decoder", False):
            return "it is a decoder"
        for name in ("past_key_values", "encoder_hidden_states", "encoder_attention_mask", "cache"):
            if given.get(name) is not None:
                return f"{name} is given"
        if given.get("is_causal", getattr(config, "is_causal", None)):
            return "is_causal is set"
        asked = given.get("output_attentions")
        if config.output_attentions if asked is None else asked:
            return "output_attentions is set"
        kind = config._attn_implementation
        if kind not in ATTENTIONS and "flash" not in kind:
            return f"its attention is {kind!r}, which may compute anything"
        states = given.get("output_hidden_states")
        if not (SELECTS_STATES or states is None or isinstance(states, bool)):
            return "output_hidden_states holds indices, which this release of transformers counts otherwise"
        mask = given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() > 2:
            return f"attention_mask has {mask.dim()} dimensions"
        if torch.jit.is_tracing() or torch.compiler.is_exporting():  # type: ignore[attr-defined]
            return "it is traced or exported"
        return self.containers().reason_to_call()

    def forward_on_rows(self, **given: Any) -> Any:
        """Compute on rows, or leave the call to transformers."""
        reason = self.reason_not_packed(given)
        if reason is None:
            return self._encode(**given)
        name = type(self).__name__
        if is_packed(given) or self._restarts(given):
            raise ValueError(f"packed input needs the padding-free {name}, which can't compute this: {reason}")
        if given.get("return_packed"):
            raise ValueError(f"return_packed must be False where {name} runs as transformers' own: {reason}")
        warn_once(f"{name} runs as transformers' own, padding included: {reason}.")
        own = {key: value for key, value in given.items() if key not in (*PACKED_ARGUMENTS, *ORDERS)}
        return self.original.forward(self, **own)

    def _restarts(self, given: dict[str, Any]) -> bool:
        """True if the input is a lone row of several sequences, which transformers' encoders read as one."""
        positions, ids = given.get("position_ids"), given.get("input_ids")
        source = given.get("inputs_embeds") if ids is None else ids
        if not (isinstance(positions, Tensor) and isinstance(source, Tensor) and len(source) == 1):
            return False
        if positions.dim() != 2 or given.get("attention_mask") is not None:
            return False
        if torch.jit.is_tracing() or torch.compiler.is_exporting():  # type: ignore[attr-defined]
            return False
        if getattr(self.config, "is_decoder", False):
            return False
        return any(bool(count_packed(positions[0], first) > 1) for first in {0, self.limits.first_position})

    def _encode(
        self,
        input_ids: Tensor | PackedBatch | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        return_dict: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        max_length_q: int | None = None,
        validate: bool = False,
        value_checks: tuple[ValueCheck, ...] = (),
        return_packed: bool = False,
        scores_sequences: bool = False,
        refusal: str | None = None,
        padded_shape: tuple[int, int] | None = None,
        prefix_lens: Tensor | None = None,
        **further: Any,
    ) -> Any:
        """Encode a batch: padded, flattened (with `cu_seq_lens_q`) or a PackedBatch.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds, output_hidden_states, return_dict: those of
                transformers; `input_ids` may be a PackedBatch.
            cu_seq_lens_q, cu_seq_lens_k, max_length_q, padded_shape, prefix_lens: of flattened input, as in
                `ErnieMModel`.
            validate: check values of packed input off the CPU too, at the price of a synchronisation.
            value_checks: further values to check along with the input.
            return_packed: return a PackedModelOutput, on packed rows.
            scores_sequences: return a last_hidden_state (num_sequences, 1, hidden_size) of first tokens, all that a
                head needs that scores sequences; the last layer computes no others.
            refusal: error of a head that takes no packed input, for a lone row that holds some.
            further: ids that the family knows, such as token_type_ids. `langs` and `task_type_ids` of another are
                refused, anything else is ignored, as transformers does.
        """
        limits, table = self.limits, self.position_table.weight
        for name in ("langs", "task_type_ids"):
            if further.get(name) is not None and name not in self.token_id_names:
                raise ValueError(f"{name} must be None: {type(self).__name__} has no table for them")
        token_ids = {name: further[name] for name in self.token_id_names if further.get(name) is not None}
        batch, _ = pack_input(
            limits, table, input_ids, inputs_embeds, position_ids, attention_mask, cu_seq_lens_q, cu_seq_lens_k,
            max_length_q, validate, value_checks, token_ids, padded_shape, prefix_lens,
        )  # fmt: skip
        if refusal is not None and batch.padded_shape is None:
            raise ValueError(refusal)
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        options = OutputOptions(bool(asked), False, True)  # transformers takes 0 and [] for no
        first = batch.first_rows() if scores_sequences and self._rows_may_be_left_out(batch, options) else None
        context = self.make_context(batch)
        rows = self.embed(context)
        # The layers need no tokens, and activation checkpoints need not keep them.
        context = replace(context, batch=replace(batch, input_ids=None, inputs_embeds=None, token_ids={}))
        encoded = encoder.run_layers(self.steps(), rows, context, options, first)
        device = batch.position_ids.device
        rows, states = encoded.last_hidden_state.to(device), encoded.hidden_states
        firsts = batch.first(rows) if first is None else batch.zero_empty(rows)
        if scores_sequences:
            last = firsts[:, None]
        else:
            last = rows if return_packed else states[-1] if states else batch.output(rows)
        found = {
            "last_hidden_state": last,
            "pooler_output": self.pool(firsts),
            "hidden_states": _select(states, asked),
        }
        if return_packed:
            return PackedModelOutput(**found, batch=batch)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        output = self.result({name: value for name, value in found.items() if value is not None})
        return output if as_dict else output.to_tuple()

    token_id_names: ClassVar[tuple[str, ...]] = ("token_type_ids",)
    """Arguments with further ids of the tokens."""

    def result(self, found: dict[str, Any]) -> Any:
        """What was found in transformers' class of it."""
        return BaseModelOutputWithPoolingAndCrossAttentions(**found)

    @property
    def may_drop(self) -> bool:
        """True if dropouts may be on that are no modules of their own."""
        return self.training

    def make_context(self, batch: PackedBatch) -> PackedContext:
        """Decide how a batch is computed."""
        return encoder.make_context(
            batch, None, None, num_heads=self.num_heads, hidden_size=self.config.hidden_size,
            dtype=self.position_table.weight.dtype, training=self.may_drop, backend=self.backend,
        )  # fmt: skip

    def parts(self, index: int) -> LayerParts:
        """Parts of a layer that computes on rows."""
        layer: Any = self.layer_stack[index]
        return layer.parts(index)  # type: ignore[no-any-return]

    def reason_for_grid(self, layer: nn.Module) -> str | None:
        """Reason why a layer must compute the padded grid, as transformers' own, or None."""
        if not isinstance(layer, self.layer_class):
            return f"it was replaced by a {type(layer).__name__}"
        return layer.containers().reason_to_call() if is_unwatched(layer) else "it has hooks"

    def steps(self) -> list[encoder.Layer]:
        """The layers as functions on rows."""
        return [self._step(layer, index) for index, layer in enumerate(self.layer_stack)]

    def _step(self, layer: nn.Module, index: int) -> encoder.Layer:
        reason = self.reason_for_grid(layer)
        if reason is None:
            return lambda x, context: (layer(x, context, index), None)
        warn_once(f"A layer runs as transformers' own, on padded tokens: {reason}.")

        def on_grid(x: Tensor, context: PackedContext) -> tuple[Tensor, None]:
            if context.batch.prefix_lens is not None:
                raise ValueError(f"prefix_lens must be None where a layer runs as transformers' own: {reason}")
            grid = context.batch.to_grid(x)
            real = context.batch.to_grid(torch.ones_like(context.batch.position_ids, dtype=torch.bool), False)
            mask = create_bidirectional_mask(config=self.config, inputs_embeds=grid, attention_mask=real)
            return context.kept(context.batch.from_grid(layer(grid, mask))), None

        return on_grid

    def _rows_may_be_left_out(self, batch: PackedBatch, options: OutputOptions) -> bool:
        """True if the last layer may compute some rows only, because nobody sees that the others are missing."""
        if options.hidden_states or batch.total_tokens == 0:
            return False
        layers = self.layer_stack
        return len(layers) > 0 and all(fusion.may_bypass(module) for module in layers[-1].modules())


def _select(states: tuple[Tensor, ...] | None, asked: Any) -> tuple[Tensor | None, ...] | None:
    """Those of the hidden states that were asked for by index, None in place of the others."""
    if states is None or isinstance(asked, bool):
        return states
    chosen = {index % len(states) for index in ([asked] if isinstance(asked, int) else asked)
              if -len(states) <= index < len(states)}  # fmt: skip
    return tuple(state if index in chosen else None for index, state in enumerate(states))

"""The outputs of an encoder that its caller asked for, in the forms of transformers 4.40.2."""

from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

P = ParamSpec("P")
R = TypeVar("R")


def called_as(forward: Callable[P, R]) -> Callable[[Callable[..., Any]], Callable[P, R]]:
    """Give a `__call__` the arguments and the result of `forward`, for type checkers and completion only.

    torch declares that calling a module takes and gives anything, so a module that is called needs its own declaration.
    """
    return lambda call: call


class OutputOptions(NamedTuple):
    """Optional outputs of a forward."""

    hidden_states: bool
    attentions: bool
    return_dict: bool

    @classmethod
    def of(
        cls, config: Any, hidden_states: bool | None, attentions: bool | None, return_dict: bool | None
    ) -> "OutputOptions":
        """Take each option from its argument, or where that is None from the configuration."""
        return cls(
            bool(config.output_hidden_states if hidden_states is None else hidden_states),
            bool(config.output_attentions if attentions is None else attentions),
            bool(config.return_dict if return_dict is None else return_dict),
        )


class Encoded(NamedTuple):
    """Results of the layers.

    Attributes:
        last_hidden_state: output of the last layer.
        hidden_states: the embeddings and every layer's output, or None.
        attentions: every layer's probabilities, or None.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Any, ...] | None

    @classmethod
    def of(
        cls, last_hidden_state: Tensor, hidden_states: list[Tensor], attentions: list[Any], options: OutputOptions
    ) -> "Encoded":
        """Keep what was asked for."""
        return cls(
            last_hidden_state,
            tuple(hidden_states) if options.hidden_states else None,
            tuple(attentions) if options.attentions else None,
        )


def base_tuple(output: BaseModelOutputWithPoolingAndCrossAttentions) -> tuple[Any, ...]:
    """4.40.2's tuple: the pooler's place is kept where there is none."""
    optional = (value for value in (output.hidden_states, output.attentions) if value is not None)
    return (output.last_hidden_state, output.pooler_output, *optional)

"""Small models of every family, with every head that transformers has for it, and transformers run row by row."""

import copy
from typing import Any, NamedTuple
from unittest import mock

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from erniem_fast import padding_free

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 24, "type_vocab_size": 2, "initializer_range": 0.2,
}  # fmt: skip
NO_DROPOUT = {
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout": 0.0, "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0, "qa_dropout": 0.0, "classifier_dropout": 0.0, "summary_last_dropout": 0.0,
}  # fmt: skip
TOLERANCE = 1e-10


class Family(NamedTuple):
    """Prefix of a family's classes, configuration besides SIZES, and the names of further ids with the rows there."""

    prefix: str
    changes: dict[str, Any] = {}
    token_ids: dict[str, int] = {"token_type_ids": 2}

    def find(self, head: str) -> Any:
        """Class of a head, None where transformers has none."""
        return getattr(transformers, self.prefix + head, None)

    @property
    def heads(self) -> list[str]:
        """Heads that transformers has."""
        return [head for head in HEADS if self.find(head) is not None]


HEADS = [
    "Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering",
    "ForMultipleChoice", "ForNextSentencePrediction", "ForPreTraining", "ForCausalLM", "LMHeadModel",
    "WithLMHeadModel", "ForQuestionAnsweringSimple",
]  # fmt: skip
TASKS = {"use_task_id": True, "task_type_vocab_size": 3}
FAMILIES = {
    "bert": Family("Bert"),
    "ernie": Family("Ernie", {"hidden_act": "relu"}),
    "ernie with tasks": Family("Ernie", TASKS, {"token_type_ids": 2, "task_type_ids": 3}),
    "roberta": Family("Roberta"),
    "xlm-roberta": Family("XLMRoberta", {"type_vocab_size": 1}, {"token_type_ids": 1}),
    "camembert": Family("Camembert"),
    "data2vec": Family("Data2VecText"),
    "electra": Family("Electra", {"embedding_size": 16}),
    "distilbert": Family("DistilBert", {}, {}),
    "sinusoidal distilbert": Family("DistilBert", {"sinusoidal_pos_embds": True}, {}),
    "xlm": Family("XLM", {"n_langs": 3}, {"token_type_ids": 60, "langs": 3}),
    "sinusoidal xlm": Family("XLM", {"sinusoidal_embeddings": True, "gelu_activation": False}, {}),
    "causal xlm": Family("XLM", {"n_langs": 2, "causal": True}, {"langs": 2}),
}
"""By name."""
PAIRS = [(family, head) for family in FAMILIES for head in FAMILIES[family].heads]
"""Every family with every head."""
MASKED_LM = ("ForMaskedLM", "WithLMHeadModel")
PADDINGS = ["right", "left", "holes", "none", "no mask", "empty row"]
ALIKE = {
    "DistilBert": {
        "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim", "type_vocab_size": None,
    },
    "XLM": {
        "hidden_size": "emb_dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
        "intermediate_size": None, "type_vocab_size": None, "hidden_dropout_prob": None,
        "attention_probs_dropout_prob": None, "seq_classif_dropout": None, "qa_dropout": None,
        "classifier_dropout": None, "initializer_range": "init_std",
    },
}  # fmt: skip
"""Their own names of what SIZES and NO_DROPOUT hold."""


def config_of(family: str, **changes: Any) -> Any:
    """Small configuration."""
    prefix = FAMILIES[family].prefix
    settings = SIZES | FAMILIES[family].changes | changes
    settings = {ALIKE.get(prefix, {}).get(name, name): value for name, value in settings.items()}
    settings.pop(None, None)
    return getattr(transformers, f"{prefix}Config")(**settings)


def make_plain(family: str, head: str = "Model", dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A model of transformers' in eval mode, no parameter of which is zero or one."""
    model = FAMILIES[family].find(head)(config_of(family, **changes)).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model


def make(family: str, head: str = "Model", dtype: torch.dtype = torch.float64, **changes: Any) -> tuple[Any, Any]:
    """A model of transformers', and a padding-free copy."""
    plain = make_plain(family, head, dtype, **changes)
    return plain, padding_free(copy.deepcopy(plain))


LENGTHS = (7, 3, 9, 1)


def mask_of(padding: str, lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    """(batch, seq_len) 0 and 1."""
    columns, ends = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
    if padding in ("none", "no mask"):
        return torch.ones(len(lengths), max(lengths), dtype=torch.int64)
    if padding == "left":
        return (columns >= max(lengths) - ends).long()
    mask = (columns < ends).long()
    if padding == "holes":
        mask = torch.randint(2, mask.shape)
        mask[:, 4] = 1  # none is empty
        mask[0, 0], mask[1, 0] = 0, 1
    if padding == "empty row":
        mask[1] = 0
    return mask


def batch(family: str, padding: str = "right", lengths: tuple[int, ...] = LENGTHS) -> dict[str, Tensor]:
    """Random input. Some ids at holes are ordinary ones; without a mask some are the pad id."""
    mask, pad = mask_of(padding, lengths), config_of(family).pad_token_id
    ids = torch.randint(3, SIZES["vocab_size"], mask.shape)
    padded = torch.full_like(ids, pad)
    if padding == "holes":
        ids = torch.where((mask == 1) | (torch.rand(mask.shape) < 0.5), ids, padded)
    elif padding == "no mask":
        ids = torch.where((torch.rand(mask.shape) < 0.3) & (torch.arange(mask.shape[1]) > 0), padded, ids)
    else:
        ids = torch.where(mask == 1, ids, padded)
    further = {name: torch.randint(rows, ids.shape) for name, rows in FAMILIES[family].token_ids.items()}
    return {"input_ids": ids, **({} if padding == "no mask" else {"attention_mask": mask}), **further}


def for_head(family: str, head: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The input as a head takes it: multiple choice reads (batch / 2, 2, seq_len)."""
    if head != "ForMultipleChoice":
        return inputs
    # transformers' ErnieForMultipleChoice does not flatten task types.
    return {name: ids.unflatten(0, (-1, 2)) for name, ids in inputs.items() if name != "task_type_ids"}


def real_of(family: str, inputs: dict[str, Tensor]) -> Tensor:
    """(..., seq_len) bool of real tokens."""
    ids = inputs["input_ids"]
    if "attention_mask" in inputs:
        return inputs["attention_mask"] == 1
    if FAMILIES[family].prefix == "XLM":  # as many columns as there are ids that are not the pad id
        return torch.arange(ids.shape[-1]) < (ids != config_of(family).pad_index).sum(-1, keepdim=True)
    return torch.ones_like(ids, dtype=torch.bool)


def labels_for(family: str, head: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random labels, none of them at padding."""
    ids = inputs["input_ids"]
    real = real_of(family, inputs)
    rows = (len(ids),)
    if head in ("ForSequenceClassification", "ForNextSentencePrediction"):
        return {"labels": torch.randint(2, rows)}
    if head == "ForMultipleChoice":
        return {"labels": torch.randint(2, (len(ids) // 2 if ids.dim() == 2 else len(ids),))}
    if (family.endswith("xlm"), head) == (True, "ForQuestionAnswering"):
        names = ("start_positions", "end_positions", "cls_index")
        labels = {name: torch.randint(ids.shape[1], rows) for name in names}
        return labels | {"is_impossible": torch.randint(2, rows).double()}
    if head.startswith("ForQuestionAnswering"):  # some lie behind the row, and all of them would be a loss of NaN
        inside = torch.tensor([ids.shape[1], *[ids.shape[1] + 2] * (len(ids) - 1)])
        return {name: (torch.rand(rows) * inside).long() for name in ("start_positions", "end_positions")}
    if head == "ForPreTraining" and family == "electra":
        return {"labels": torch.randint(2, ids.shape)}
    limit = 2 if head == "ForTokenClassification" else SIZES["vocab_size"]
    chosen = real & (torch.rand(ids.shape) < 0.6)
    chosen[-1, :1] = real[-1, :1]
    labels = {"labels": torch.where(chosen, torch.randint(limit, ids.shape), -100)} if head != "Model" else {}
    if head == "ForPreTraining":
        labels["next_sentence_label"] = torch.randint(2, rows)
    return labels


def exact_softmax() -> Any:
    """Context in which XLM's softmax, which transformers asks for in float32, is float64."""
    return mock.patch.object(Tensor, "float", Tensor.double)


class RowByRow(nn.Module):
    """An encoder of transformers' that runs on each row's real tokens alone, at the positions that they have there.

    Hidden states at padding are 0, the pooler takes a row's first real token, and with `firsts` that token is all
    that there is.
    """

    def __init__(self, encoder: nn.Module, family: str, firsts: bool) -> None:
        super().__init__()
        self.encoder, self.family, self.firsts = encoder, family, firsts

    def positions(self, input_ids: Tensor) -> Tensor:
        """Positions as the family counts them."""
        embeddings: Any = self.encoder.embeddings
        count = getattr(embeddings, "create_position_ids_from_input_ids", None)
        if count is not None:
            return count(input_ids, embeddings.padding_idx)
        return torch.arange(input_ids.shape[1]).expand(input_ids.shape)

    def forward(self, input_ids: Tensor, attention_mask: Any = None, **further: Any) -> Any:
        """As transformers' own."""
        mask = real_of(
            self.family,
            {"input_ids": input_ids} | ({} if attention_mask is None else {"attention_mask": attention_mask}),
        )
        given = {name: value for name, value in further.items() if isinstance(value, Tensor)}
        if given.get("position_ids") is None:
            given["position_ids"] = self.positions(input_ids)
        size = self.encoder.config.hidden_size
        states: list[Any] = []
        pooled = []
        for row, real in enumerate(mask):
            if not real.any():
                zeros = self.encoder.dtype
                states.append(None)
                first = torch.zeros(1, 1, size, dtype=zeros)
                pooled.append(self.encoder.pooler(first) if getattr(self.encoder, "pooler", None) is not None else None)
                continue
            alone = {name: value.expand(input_ids.shape)[row, real][None] for name, value in given.items()}
            ids = input_ids[row, real][None]
            with exact_softmax():
                output = self.encoder(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, **alone)
            states.append([state[0] for state in output.hidden_states])
            pooled.append(getattr(output, "pooler_output", None))
        hidden = tuple(
            self.grid([None if one is None else one[index] for one in states], mask, size)
            for index in range(self.encoder.config.num_hidden_layers + 1)
        )
        last = hidden[-1]
        if self.firsts:
            last = torch.stack([line[real.int().argmax()] for line, real in zip(last, mask, strict=True)])[:, None]
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=last,
            pooler_output=None if pooled[0] is None else torch.cat(pooled),
            hidden_states=hidden if further.get("output_hidden_states") else None,
        )

    def grid(self, rows: list[Tensor | None], mask: Tensor, size: int) -> Tensor:
        """(batch, seq_len, hidden_size), 0 at padding."""
        lines = []
        for row, real in zip(rows, mask, strict=True):
            line = torch.zeros(len(real), size, dtype=self.encoder.dtype)
            lines.append(line if row is None else line.index_put((real.nonzero()[:, 0],), row))
        return torch.stack(lines)


SCORES_SEQUENCES = ("ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction")


def by_rows(plain: Any, family: str, head: str) -> Any:
    """The oracle of a padding-free model: transformers' head over its encoder row by row. It shares the parameters."""
    if head == "Model":
        return RowByRow(plain, family, False)
    oracle = copy.copy(plain)
    oracle._modules = dict(plain._modules)
    setattr(oracle, plain.base_model_prefix, RowByRow(plain.base_model, family, head in SCORES_SEQUENCES))
    return oracle


def tensors(output: Any) -> dict[str, Tensor]:
    """All tensors of an output, by name."""
    found = {}
    for name, value in output.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, tuple):
            found |= {f"{name}[{index}]": one for index, one in enumerate(value) if isinstance(one, Tensor)}
    return found


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by name; the model has none afterwards."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_close(
    found: Tensor, expected: Tensor, tolerance: float = TOLERANCE, name: str = "", least: float = 0
) -> None:
    """Compare relative to the largest magnitude, `least` at least."""
    assert found.shape == expected.shape, name
    assert found.isfinite().all(), name
    found, expected = found.detach(), expected.detach()
    scale = max(float(expected.abs().max()) if expected.numel() else 0.0, least)
    error = float((found - expected).abs().max()) if expected.numel() else 0.0
    assert error <= tolerance * scale, f"{name}: error {error:.2e} of {scale:.2e}"


def assert_same_outputs(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """All tensors of two outputs."""
    one, other = tensors(found), tensors(expected)
    assert one.keys() == other.keys()
    assert one
    for name, value in other.items():
        assert_close(one[name], value, tolerance, name)


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """All gradients; those of key biases are 0 but for rounding."""
    assert found.keys() == expected.keys()
    assert found
    largest = max(float(grad.abs().max()) for grad in expected.values())
    assert largest > 0
    for name, grad in expected.items():
        is_key = name.endswith(("key.bias", "k_lin.bias")) or (".k_lin." in name and name.endswith("bias"))
        assert_close(found[name], grad, tolerance, name, largest if is_key else 1e-3 * largest)


def objective(output: Any, weights: dict[str, Tensor]) -> Tensor:
    """A scalar that depends on every tensor of an output."""
    total = torch.zeros((), dtype=torch.float64)
    for name, value in tensors(output).items():
        weight = weights.setdefault(name, torch.randn(value.shape, dtype=torch.float64))
        total = total + (value.double() * weight).sum()
    return total

"""Benchmarks of other families: transformers' encoders made padding-free, against themselves and against ErnieM.

The providers of a case have the same parameters in the same memory.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    BertConfig,
    BertModel,
    XLMConfig,
    XLMModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaModel,
)

from bench.engine.registry import Benchmark, Prepared
from bench.engine.shapes import BASE, TWO_LAYERS, Batch, Setting, Shape, Sizes, batched
from bench.engine.torch_compile import compile_layers, needs_compiler
from bench.ops.attention import torch_varlen
from bench.ops.linear import linear_work
from erniem_fast import modeling, padding_free
from erniem_fast.losses import IGNORED

from .encoder import PADDING_FREE, STEP, TINY_SHAPE
from .inputs import ModelInputs, packed_forward, padded_forward

EPS = 1e-5
MASKED_EVERY = 7
"""A token whose id this divides is masked: 14 % of them."""
TEXTS_A_ROUND = 20
"""Forwards in a round of a single text, which is too short to be timed alone."""
Build = Callable[[Sizes], nn.Module]


def _named(sizes: Sizes) -> dict[str, int]:
    names, config = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"), sizes.config()
    return {name: getattr(config, name) for name in (*names, "intermediate_size")}


def bert(sizes: Sizes) -> nn.Module:
    """BERT without a pooler, random weights."""
    return BertModel(BertConfig(**_named(sizes)), add_pooling_layer=False)


def xlm_roberta(sizes: Sizes, masked: bool = False) -> nn.Module:
    """XLM-R without a pooler, or with a masked-LM head, random weights."""
    config = XLMRobertaConfig(
        **_named(sizes), max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, layer_norm_eps=EPS
    )
    return XLMRobertaForMaskedLM(config) if masked else XLMRobertaModel(config, add_pooling_layer=False)


def xlm(sizes: Sizes) -> nn.Module:
    """XLM, whose feed-forward block is four times as wide as it is, random weights."""
    return XLMModel(
        XLMConfig(
            vocab_size=sizes.vocab_size, emb_dim=sizes.hidden_size, n_layers=sizes.num_layers, n_heads=sizes.num_heads
        )
    )


class FamilyInputs(ModelInputs):
    """Batches, and a model of transformers that all providers share the parameters of.

    Args:
        build: makes the model.
        shape, setting: of the case.
    """

    def __init__(self, build: Build, shape: Shape, setting: Setting) -> None:
        super().__init__(shape, setting)
        self.base = _built(build, shape.sizes, setting.device)
        if not self.trains and setting.dtype != torch.float32:
            self.base = copy.deepcopy(self.base).to(setting.dtype)
        limits: Any = padding_free(self.shared()).base_model.limits  # type: ignore[operator]
        self.batches = [_counted_from(limits.first_position, batch) for batch in self.batches]
        self.checked = _counted_from(limits.first_position, self.checked)

    def shared(self, attention: str | None = None) -> Any:
        """The model with parameters of its own in the same memory, and an implementation of attention."""
        parameters = {id(one): nn.Parameter(one.detach()) for one in self.base.parameters()}
        model: Any = copy.deepcopy(self.base, parameters)  # type: ignore[arg-type]
        if attention is not None:
            model.set_attn_implementation(attention)
        return model.eval()

    oracle = shared

    def erniem(self) -> Any:
        """ErnieM with the parameters of XLM-R: the one token type goes into the positions."""
        state = {_in_erniem(name): value for name, value in self.base.state_dict().items()}
        kind = state.pop("embeddings.token_type_embeddings.weight")
        state["embeddings.position_embeddings.weight"] = state["embeddings.position_embeddings.weight"] + kind
        config = self.shape.sizes.config()
        config.layer_norm_eps = EPS
        with torch.device("meta"):
            model = modeling.ErnieMModel(config, add_pooling_layer=False)
        model.load_state_dict(state, assign=True)
        return model.eval()


class MaskedInputs(FamilyInputs):
    """A masked-LM head with a vocabulary of XLM-R's size, and the loss of labelled tokens in place of an output."""

    compared = (
        "roberta.embeddings.LayerNorm.weight",
        "roberta.encoder.layer.0.attention.self.query.weight",
        "roberta.encoder.layer.0.intermediate.dense.bias",
        "lm_head.bias",
    )

    def __init__(self, build: Build, shape: Shape, setting: Setting) -> None:
        super().__init__(build, shape, setting)
        labelled = sum(int((labels_of(batch) != IGNORED).sum()) for batch in self.batches)
        sizes = shape.sizes
        for width in (sizes.hidden_size, sizes.vocab_size):
            self.work += linear_work(labelled, sizes.hidden_size, width, setting.itemsize, setting.passes)

    def reference_rows(self, model: nn.Module) -> Tensor:
        return masked_loss(model, self.checked)

    def loss_of(self, output: Tensor) -> Tensor:
        return output


@lru_cache(maxsize=1)
def _built(build: Build, sizes: Sizes, device: str) -> nn.Module:
    with torch.device(device):
        return build(sizes)


def _counted_from(first: int, batch: Batch) -> Batch:
    return replace(batch, packed=replace(batch.packed, position_ids=batch.packed.position_ids + first))


IN_ERNIEM = {
    "LayerNorm": "layer_norm", "encoder.layer.": "encoder.layers.", "attention.self.": "self_attn.self_attn.",
    "query": "q_proj", "key": "k_proj", "value": "v_proj", "attention.output.dense": "self_attn.out_proj",
    "attention.output.layer_norm": "norm1", "intermediate.dense": "linear1", "output.dense": "linear2",
    "output.layer_norm": "norm2",
}  # fmt: skip
"""Parts of ErnieM's names by XLM-R's, replaced in this order."""


def _in_erniem(name: str) -> str:
    for theirs, ours in IN_ERNIEM.items():
        name = name.replace(theirs, ours)
    return name


def labels_of(batch: Batch) -> Tensor:
    """(batch, seq_len) labels: the ids of masked tokens, which the input shows, for times do not depend on it."""
    labelled = (batch.input_ids % MASKED_EVERY == 0) & batch.attention_mask.bool()
    return batch.input_ids.where(labelled, IGNORED)


def masked_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean loss of the labelled tokens."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    return model(**inputs, labels=labels_of(batch)).loss  # type: ignore[no-any-return]


def flattened_forward(model: nn.Module, batch: Batch) -> Tensor:
    """Last hidden state (total_tokens, hidden_size) of transformers' model on flattened input."""
    packed = batch.packed
    assert packed.input_ids is not None
    output = model(
        input_ids=packed.input_ids[None], position_ids=packed.position_ids[None], cu_seq_lens_q=packed.cu_seqlens,
        cu_seq_lens_k=packed.cu_seqlens, max_length_q=packed.max_seqlen, max_length_k=packed.max_seqlen,
    )  # fmt: skip
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


def varlen_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, *, cu_seq_lens_q: Tensor,
    max_length_q: int, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """PyTorch's varlen attention as transformers calls one, on (1, num_heads, total_tokens, head_dim)."""
    query, key, value = (operand[0].transpose(0, 1) for operand in (query, key, value))
    return torch_varlen(query, key, value, cu_seq_lens_q, max_length_q)[None], None


VARLEN = "bench_varlen"
AttentionInterface.register(VARLEN, varlen_attention)  # it has no entry among the masks, so none is made


def _one_text(sizes: Sizes, place: int) -> Shape:
    return Shape("1x8", ((8,),) * TEXTS_A_ROUND, sizes, "all 8", priority={torch.float32: place})


def _masked_shape() -> Shape:
    """A batch of 8 texts, because the padded logits of 16 take 20 GB: that with about as much padding as 16 have."""
    mix = batched("xquad", "arrival", 16)
    padding = mix.padded_tokens / mix.real_tokens
    batches = batched("xquad", "arrival", 8).batches
    chosen = min(batches, key=lambda lengths: abs(len(lengths) * max(lengths) / sum(lengths) - padding))
    return Shape("xquad-8-batch", (chosen,), TWO_LAYERS, "xquad", priority={torch.float32: 3})


XLM_SIZES = Sizes(hidden_size=1024, num_heads=8, intermediate_size=4096, vocab_size=95000)
"""Those of xlm-mlm-tlm-xnli15-1024, with two layers."""
BERT_SIZES = Sizes(vocab_size=30522)
XLM_R = Benchmark(
    "XLM-R",
    partial(FamilyInputs, xlm_roberta),
    (
        batched("xquad", "arrival", 64, BASE, bfloat16=5),
        batched("xquad", "arrival", 16, float32=0),
        batched("xquad", "sorted", 16, float32=0),
        _one_text(TWO_LAYERS, 1),
        _one_text(BASE, 2),
    ),
    (TINY_SHAPE,),
    baseline=PADDING_FREE,
)
BERT = Benchmark(
    "BERT",
    partial(FamilyInputs, bert),
    (_one_text(BERT_SIZES, 1), _one_text(replace(BERT_SIZES, num_layers=12), 2)),
    (TINY_SHAPE,),
    baseline=PADDING_FREE,
)
XLM = Benchmark(
    "XLM",
    partial(FamilyInputs, xlm),
    (
        batched("xquad", "arrival", 16, XLM_SIZES, float32=0),
        batched("xquad", "sorted", 16, XLM_SIZES, float32=0),
        _one_text(XLM_SIZES, 1),
        _one_text(replace(XLM_SIZES, num_layers=12), 2),
    ),
    (TINY_SHAPE,),
    baseline=PADDING_FREE,
)
MASKED_LM = Benchmark(
    "XLM-R masked LM", partial(MaskedInputs, partial(xlm_roberta, masked=True)), (_masked_shape(),), (TINY_SHAPE,),
    STEP, PADDING_FREE,
)  # fmt: skip
ENCODERS = (XLM_R, XLM, BERT)
BENCHMARKS = (*ENCODERS, MASKED_LM)


def needs_gpu(shape: Shape, setting: Setting) -> str | None:
    """Reason why a provider is left out on a CPU, dry runs excepted, or None."""
    return None if setting.device == "cuda" or setting.tiny else "is measured on a GPU only"


def _padding_free(inputs: FamilyInputs) -> Prepared:
    model = padding_free(inputs.shared())
    return inputs.prepare(model, partial(padded_forward, model), padded=True)


def _transformers(inputs: FamilyInputs) -> Prepared:
    model = inputs.shared()
    return inputs.prepare(model, partial(padded_forward, model), padded=True)


for _encoder in ENCODERS:
    _encoder.provider(PADDING_FREE, note="padding_free, from padded input to padded output")(_padding_free)
    _encoder.provider("transformers", note="its default attention: SDPA, of XLM eager")(_transformers)


@XLM_R.provider("ErnieM", note="the same parameters, but for the token type, which is part of the positions")
def _(inputs: FamilyInputs) -> Prepared:
    model = inputs.erniem()
    return inputs.prepare(model, partial(padded_forward, model), padded=True)


@XLM_R.provider(f"{PADDING_FREE}, packed input", needs=needs_gpu)
def _(inputs: FamilyInputs) -> Prepared:
    model = padding_free(inputs.shared())
    return inputs.prepare(model, partial(packed_forward, model), padded=False)


@XLM_R.provider("transformers, eager", needs=needs_gpu)
def _(inputs: FamilyInputs) -> Prepared:
    model = inputs.shared("eager")
    return inputs.prepare(model, partial(padded_forward, model), padded=True)


@XLM_R.provider("transformers, compiled", note="SDPA; torch.compile layer by layer", needs=needs_compiler)
def _(inputs: FamilyInputs) -> Prepared:
    model = inputs.shared("sdpa")
    compile_layers(model.encoder.layer, inputs.setting.device)
    return inputs.prepare(model, partial(padded_forward, model), padded=True)


@XLM_R.provider("transformers, varlen_attn, compiled", ("cuda",), note="flattened input; torch.compile layer by layer")
def _(inputs: FamilyInputs) -> Prepared:
    model = inputs.shared(VARLEN)
    compile_layers(model.encoder.layer, inputs.setting.device)
    return inputs.prepare(model, partial(flattened_forward, model), padded=False)


def _masked(inputs: MaskedInputs, model: Any) -> Prepared:
    return inputs.prepare(model, partial(masked_loss, model), padded=False)


@MASKED_LM.provider(PADDING_FREE, note="padding_free, logits of all real tokens")
def _(inputs: MaskedInputs) -> Prepared:
    return _masked(inputs, padding_free(inputs.shared()))


@MASKED_LM.provider(f"{PADDING_FREE}, loss only", note="padding_free, logits of labelled tokens")
def _(inputs: MaskedInputs) -> Prepared:
    model = padding_free(inputs.shared())
    model.loss_only = True
    return _masked(inputs, model)


@MASKED_LM.provider("transformers", note="SDPA, logits of padding, too")
def _(inputs: MaskedInputs) -> Prepared:
    return _masked(inputs, inputs.shared())

"""Strings to vectors: the engine over the bare forwards of its batches; beside sentence-transformers and a pipeline."""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import XLMRobertaConfig, XLMRobertaModel, pipeline

from bench.engine.environment import ROOT
from bench.engine.registry import Benchmark, Needs, Prepared
from bench.engine.shapes import FORWARD, Setting, Shape, Sizes
from bench.engine.work import Work
from bench.models.families import needs_gpu
from bench.models.work import encoder_work
from erniem_fast import ErnieMTokenizer, PackedBatch, modeling, reference
from erniem_fast.inference.engine import Encoder

from .corpus import corpus, draw
from .peer_process import Peer
from .setup import SETUP, multiplies_bfloat16, needs_package, rust_tokenizer

TOKENIZER = ROOT / "erniem_fast" / "demo_data" / "tokenizer"
SIZES = Sizes(hidden_size=256, num_heads=4, intermediate_size=1024, vocab_size=16002, num_layers=4)
TINY_SIZES = Sizes(hidden_size=32, num_heads=4, intermediate_size=64, vocab_size=16002, num_layers=2)
MAX_TOKENS = 512
CHECKED_TEXTS = 32
BATCH_SIZE = 32
"""Of sentence-transformers, which has this default, and of the pipeline."""
PIPELINE = "transformers' pipeline"
Family = Callable[[Sizes], tuple[nn.Module, nn.Module, Any]]
"""From sizes to a model, one with the same weights whose results are right, and the tokenizer."""


class TextInputs:
    """Texts in order of arrival, and the folder that every provider loads.

    Attributes:
        texts: as they arrive.
        folder: with a model of random weights and its tokenizer.
        work: least work of the model's forwards.
        facts: numbers of texts and tokens.
    """

    def __init__(
        self, family: Callable[[Sizes], tuple[nn.Module, nn.Module, Any]], shape: Shape, setting: Setting
    ) -> None:
        self.setting = setting
        self.texts = draw(len(shape.batches[0]), SETUP.texts)
        self._expected: tuple[list[Tensor], list[Tensor] | None] | None = None
        self._scratch = tempfile.TemporaryDirectory()
        self.folder = Path(self._scratch.name)
        torch.manual_seed(0)
        model, self.oracle, self.tokenizer = family(shape.sizes)
        model.save_pretrained(self.folder)  # type: ignore[operator]
        self.tokenizer.save_pretrained(self.folder)
        rows = self.tokenizer(self.texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        lengths = list(map(len, rows))
        batches = [lengths[begin : begin + BATCH_SIZE] for begin in range(0, len(lengths), BATCH_SIZE)]
        self.rows = [torch.tensor([row]) for row in rows[:CHECKED_TEXTS]]
        self.work: Work = encoder_work(lengths, shape.sizes, setting.itemsize, FORWARD, False)
        self.facts: Mapping[str, Any] = {
            "real_tokens": sum(lengths), "padded_tokens": sum(len(batch) * max(batch) for batch in batches),
            "source": corpus(SETUP.texts).source, "weights_dtype": setting.dtype_name, "autocast": None,
            "optimizer": None,
        }  # fmt: skip

    def expected(self, dropout_p: float) -> tuple[list[Tensor], list[Tensor] | None]:
        """Mean last hidden states of the first texts, each by itself through the padded model."""
        if self._expected is None:
            exact, dtype = self._vectors(self.oracle), self.setting.dtype
            plain = None if dtype == torch.float32 else [self._vectors(self.oracle.to(dtype))]
            self._expected = [exact], plain
        return self._expected

    @torch.inference_mode()
    def _vectors(self, model: nn.Module) -> Tensor:
        hidden = [model(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state for row in self.rows]
        return torch.cat([states.float().mean(1) for states in hidden])

    def prepare(self, encode: Callable[[list[str]], Any]) -> Prepared:
        """A provider that encodes in this process."""
        return Prepared(
            lambda: encode(self.texts), lambda: [torch.as_tensor(encode(self.texts[:CHECKED_TEXTS])).float()]
        )

    def peer(self, python: str | None, backend: str, dtype: str) -> Prepared:
        """A provider that is sentence-transformers in a process of its own."""
        peer = Peer(python, self.folder, backend, dtype, self.texts)
        return Prepared(partial(peer.encode, len(self.texts)), lambda: [peer.vectors(CHECKED_TEXTS)])


def ernie_m(sizes: Sizes) -> tuple[nn.Module, nn.Module, Any]:
    """ErnieM with random weights, the reference that shares them, and its tokenizer."""
    model = modeling.ErnieMModel(sizes.config(), add_pooling_layer=False).eval()
    oracle = reference.ErnieMModel(sizes.config(), add_pooling_layer=False).eval()
    oracle.load_state_dict(model.state_dict())
    return model, oracle, ErnieMTokenizer.from_pretrained(TOKENIZER)


def xlm_roberta(sizes: Sizes) -> tuple[nn.Module, nn.Module, Any]:
    """XLM-R with random weights, twice, and its Rust tokenizer with the same pieces."""
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    known = {name: getattr(sizes.config(), name) for name in names}
    config = XLMRobertaConfig(
        **known,
        max_position_embeddings=MAX_TOKENS + 2,
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    model = XLMRobertaModel(config, add_pooling_layer=False).eval()
    tokenizer = rust_tokenizer(ErnieMTokenizer.from_pretrained(TOKENIZER).sp_model)
    tokenizer.model_max_length = MAX_TOKENS
    return model, model, tokenizer


def texts_shape(number: int, sizes: Sizes = SIZES, **priority: int) -> Shape:
    """So many texts, whose lengths are known once they are read."""
    places = {getattr(torch, name): place for name, place in priority.items()}
    return Shape(f"{number}-texts", ((1,) * number,), sizes, "mix", "arrival", places)


TINY_SHAPE = texts_shape(40, TINY_SIZES)
GPU_SHAPE = texts_shape(100_000, Sizes(vocab_size=16002, num_layers=12), bfloat16=4)
BARE = "bare forwards"
OURS = "Encoder.encode"
ENGINE = Benchmark(
    "engine", partial(TextInputs, ernie_m), (texts_shape(20_000, bfloat16=1, float32=1),), (TINY_SHAPE,),
    baseline=BARE, rounds=3,
)  # fmt: skip
GPU_ENGINE = Benchmark("engine", partial(TextInputs, ernie_m), (GPU_SHAPE,), (TINY_SHAPE,), baseline=BARE, rounds=4)
SENTENCES = Benchmark(
    "sentences", partial(TextInputs, xlm_roberta), (texts_shape(20_000, bfloat16=1, float32=1),), (TINY_SHAPE,),
    baseline=OURS, rounds=2,
)  # fmt: skip
PIPELINES = Benchmark(
    "pipeline", partial(TextInputs, xlm_roberta), (texts_shape(1_000, bfloat16=1, float32=1),), (TINY_SHAPE,),
    baseline=OURS, rounds=2,
)  # fmt: skip


def needs_own_dtype(shape: Shape, setting: Setting) -> str | None:
    """Reason why a dtype that `dtype="auto"` does not take is left out, or None."""
    chosen = torch.bfloat16 if multiplies_bfloat16() else torch.float32
    name = str(chosen).removeprefix("torch.")
    return None if setting.tiny or setting.dtype == chosen else f'dtype="auto" takes {name} on this processor'


def _engine(inputs: TextInputs) -> Encoder:
    return Encoder.from_pretrained(str(inputs.folder), dtype=inputs.setting.dtype, device=inputs.setting.device)


def _ours(inputs: TextInputs) -> Prepared:
    return inputs.prepare(partial(_engine(inputs).encode, progress=False))


for _benchmark in (ENGINE, SENTENCES, PIPELINES):
    _benchmark.provider(OURS, ("cpu",), needs=needs_own_dtype)(_ours)
GPU_ENGINE.provider(OURS, needs=needs_gpu)(_ours)


def _bare(inputs: TextInputs) -> Prepared:
    engine = _engine(inputs)
    batches: list[PackedBatch] = []
    hook = engine.encoder.register_forward_pre_hook(lambda _, arguments: batches.append(arguments[0]))
    engine.encode(inputs.texts, progress=False)
    hook.remove()

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                engine.encoder(batch, return_packed=True)

    return Prepared(run, None)


BARE_NOTE = "the model alone on the batches that the engine makes"
ENGINE.provider(BARE, ("cpu",), BARE_NOTE, needs_own_dtype)(_bare)
GPU_ENGINE.provider(BARE, note=BARE_NOTE, needs=needs_gpu)(_bare)


def needs_peer_python(shape: Shape, setting: Setting) -> str | None:
    """Reason why a backend of sentence-transformers is left out, or None."""
    return (
        "is not installed: --peer-python names no environment"
        if SETUP.peer_python is None
        else needs_own_dtype(shape, setting)
    )


def _sentence_transformers(backend: str, dtype: str, python: bool) -> Callable[[TextInputs], Prepared]:
    def build(inputs: TextInputs) -> Prepared:
        # Where a case is one of float32, what is called its own precision must be, too.
        precision = "float32" if inputs.setting.dtype == torch.float32 else dtype
        return inputs.peer(SETUP.peer_python if python else None, backend, precision)

    return build


def needs_bfloat16(shape: Shape, setting: Setting) -> str | None:
    """Reason why a provider that computes in bfloat16 is left out, or None."""
    return needs_own_dtype(shape, setting) if setting.dtype == torch.bfloat16 else "is measured in bfloat16 only"


HERE, HERE_16 = (needs_package("sentence_transformers", needs) for needs in (needs_own_dtype, needs_bfloat16))
PEERS: tuple[tuple[str, str, str, Needs], ...] = (
    ("sentence-transformers, torch", "torch", "float32", HERE),
    ("sentence-transformers, torch, bfloat16", "torch", "bfloat16", HERE_16),
    ("sentence-transformers, onnx", "onnx", "float32", needs_peer_python),
    ("sentence-transformers, openvino", "openvino", "its own", needs_peer_python),
)
for _name, _backend, _dtype, _needs in PEERS:
    _build = _sentence_transformers(_backend, _dtype, _needs is needs_peer_python)
    SENTENCES.provider(_name, ("cpu",), "in a process of its own", _needs)(_build)


@PIPELINES.provider(
    PIPELINE, ("cpu",), note="batch_size=32, float32, tensors of all tokens, not pooled", needs=needs_own_dtype
)
def _(inputs: TextInputs) -> Prepared:
    options: Any = {"tokenizer": inputs.tokenizer, "device": "cpu", "batch_size": BATCH_SIZE}
    model = XLMRobertaModel.from_pretrained(inputs.folder, add_pooling_layer=False).eval()
    made = pipeline("feature-extraction", model, **options)
    run = partial(made, return_tensors=True, tokenize_kwargs={"truncation": True, "max_length": MAX_TOKENS})

    def results() -> list[Tensor]:
        found = run(inputs.texts[:CHECKED_TEXTS])
        return [torch.stack([rows[0, : row.shape[1]].mean(0) for rows, row in zip(found, inputs.rows, strict=True)])]

    return Prepared(partial(run, inputs.texts), results)

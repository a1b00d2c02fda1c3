"""Batches of 16 texts from token ids to hidden states, by us and by other runtimes, with the same weights."""

import tempfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.engine.registry import Benchmark, Prepared
from bench.engine.shapes import Batch, Setting, Shape, Sizes, batched
from bench.models.encoder import PADDING_FREE, TINY_SHAPE
from bench.models.inputs import ModelInputs, padded_forward
from erniem_fast import modeling, reference
from erniem_fast.encoder import PackedModelOutput
from erniem_fast.export import export_onnx
from erniem_fast.inference.prepacking import prepack_weights
from erniem_fast.inference.projections import join_projections
from erniem_fast.inference.runner import Runner
from erniem_fast.inference.tokens import Row

from .setup import needs_float32, needs_matrix_units, needs_package

SIZES = Sizes(vocab_size=16002)
"""Base width, two layers; the vocabulary is small, since each peer reads its own copy of the table."""
STREAMS = 2


class ServedInputs(ModelInputs):
    """Batches and weights, and the reference as an ONNX file with these weights in float32."""

    def onnx_file(self) -> Path:
        return Path(_exported(self.shape.sizes, self.setting.dtype).name) / "model.onnx"


@lru_cache(maxsize=2)
def _exported(sizes: Sizes, dtype: torch.dtype) -> "tempfile.TemporaryDirectory[str]":
    """Folder of the file: exporting takes seconds. Weights are those that the cases of these sizes share."""
    model = ServedInputs(Shape("export", ((2,),), sizes), Setting(dtype=dtype)).model(reference.ErnieMModel)
    folder = tempfile.TemporaryDirectory()
    export_onnx(model.float(), Path(folder.name) / "model.onnx")
    return folder


FORWARD = Benchmark(
    "batches",
    ServedInputs,
    (
        batched("short", "arrival", 16, SIZES, float32=0, bfloat16=0),
        batched("short", "sorted", 16, SIZES, float32=0, bfloat16=0),
        batched("mix", "arrival", 16, SIZES, count=2, float32=0, bfloat16=0),
        batched("mix", "sorted", 16, SIZES, float32=0, bfloat16=0),
    ),
    (TINY_SHAPE,),
    baseline=PADDING_FREE,
)


def _ours(inputs: ServedInputs, dtype: torch.dtype) -> Prepared:
    """The model as `Encoder` runs it: one batch after the other, from token ids to the rows of each text."""
    model = inputs.model(modeling.ErnieMModel).to(dtype)
    join_projections(model)
    prepack_weights(model)
    runner = Runner(model)
    batches = [_rows(batch) for batch in inputs.batches]

    def encode(rows: list[Row]) -> list[tuple[list[int], tuple[Tensor, ...]]]:
        return list(runner.as_completed(rows, lambda batch: _texts(model(batch, return_packed=True))))

    def run() -> None:
        for rows in batches:
            encode(rows)

    def first() -> list[Tensor]:
        texts = dict(pair for found in encode(batches[0]) for pair in zip(*found, strict=True))
        return [torch.cat([texts[index] for index in range(len(texts))])[: inputs.checked.packed.total_tokens]]

    return Prepared(run, first)


def _rows(batch: Batch) -> list[Row]:
    ids, lengths = batch.packed.input_ids, batch.packed.lengths.tolist()
    assert ids is not None
    return [Row(text.int().numpy()) for text in ids.split(lengths)]


def _texts(output: PackedModelOutput) -> tuple[Tensor, ...]:
    assert output.batch is not None
    assert output.last_hidden_state is not None
    return output.last_hidden_state.split(output.batch.lengths.tolist())


@FORWARD.provider(PADDING_FREE, ("cpu",), needs=needs_matrix_units)
def _(inputs: ServedInputs) -> Prepared:
    return _ours(inputs, inputs.setting.dtype)


def needs_bfloat16(shape: Shape, setting: Setting) -> str | None:
    return (
        needs_matrix_units(shape, setting) if setting.dtype == torch.bfloat16 else "is what the others are measured by"
    )


@FORWARD.provider(f"{PADDING_FREE}, float32", ("cpu",), needs=needs_bfloat16)
def _(inputs: ServedInputs) -> Prepared:
    return _ours(inputs, torch.float32)


@FORWARD.provider("padded", ("cpu",), note="the model of transformers 4.40.2", needs=needs_float32)
def _(inputs: ServedInputs) -> Prepared:
    model = inputs.model(reference.ErnieMModel)
    return inputs.prepare(model, partial(padded_forward, model), padded=True)


def _foreign(inputs: ServedInputs, run: Callable[[], object], compute: Callable[[Batch], Tensor]) -> Prepared:
    """A runtime of its own: what it computes of the first batch is compared."""
    first, tokens = inputs.batches[0], inputs.checked.packed.total_tokens
    return Prepared(run, lambda: [first.packed.from_grid(compute(first))[:tokens]])


def _arguments(batch: Batch) -> dict[str, Any]:
    return {"input_ids": batch.input_ids.numpy(), "attention_mask": batch.attention_mask.numpy()}


@FORWARD.provider(
    "onnxruntime", ("cpu",), note="the reference as ONNX", needs=needs_package("onnxruntime", needs_float32)
)
def _(inputs: ServedInputs) -> Prepared:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would otherwise turn while the next provider is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(inputs.onnx_file(), options, providers=["CPUExecutionProvider"])

    def compute(batch: Batch) -> Tensor:
        return torch.from_numpy(session.run(None, _arguments(batch))[0])

    def run() -> None:
        for batch in inputs.batches:
            compute(batch)

    return _foreign(inputs, run, compute)


def _compiled(inputs: ServedInputs, **settings: Any) -> Any:
    """The model by OpenVINO, in its own choice of precision unless the case is one of float32."""
    import openvino

    if inputs.setting.dtype == torch.float32:
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    settings["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
    return openvino.Core().compile_model(inputs.onnx_file(), "CPU", settings)


def _openvino(inputs: ServedInputs, streams: int) -> Prepared:
    import openvino

    # One stream is what PERFORMANCE_HINT=LATENCY gives; two are those of THROUGHPUT on two cores.
    model = _compiled(inputs, NUM_STREAMS=streams)
    request, queue = model.create_infer_request(), openvino.AsyncInferQueue(model, streams)

    def compute(batch: Batch) -> Tensor:
        return torch.from_numpy(next(iter(request.infer(_arguments(batch)).values())))

    def in_turn() -> None:
        for batch in inputs.batches:
            request.infer(_arguments(batch), share_inputs=True, share_outputs=True)

    def at_once() -> None:
        for batch in inputs.batches:
            queue.start_async(_arguments(batch), share_inputs=True)
        queue.wait_all()

    return _foreign(inputs, in_turn if streams == 1 else at_once, compute)


OPENVINO = needs_package("openvino", needs_matrix_units)
ONNX_NOTE = "the reference as ONNX; outside float32 the precision that it chooses"


@FORWARD.provider("openvino", ("cpu",), note=f"{ONNX_NOTE}; one stream", needs=OPENVINO)
def _(inputs: ServedInputs) -> Prepared:
    return _openvino(inputs, 1)


@FORWARD.provider("openvino, two streams", ("cpu",), note=f"{ONNX_NOTE}; two batches at once", needs=OPENVINO)
def _(inputs: ServedInputs) -> Prepared:
    return _openvino(inputs, STREAMS)

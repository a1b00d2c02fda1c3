"""`export_onnx` in onnxruntime, against the reference on each real text alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.golden_tokenizer import build
from helpers.onnx_files import assert_as_alone, axes, holds, real_rows
from helpers.pairs import CLASSES, batch, make
from helpers.paths import ROOT
from torch import nn

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from torch.onnx._internal.exporter import _onnx_program

from erniem_fast import export
from erniem_fast.export import export_onnx, onnx_difference

MAX_TOKENS = 64
OUTPUTS = {
    "ErnieMModel": {"last_hidden_state": ["batch", "sequence", 32], "pooler_output": ["batch", 32]},
    "ErnieMForMaskedLM": {"logits": ["batch", "sequence", "vocab_size"]},
    "ErnieMForMultipleChoice": {"logits": ["batch", "choices"]},
    "ErnieMForSequenceClassification": {"logits": ["batch", 3]},
    "ErnieMForTokenClassification": {"logits": ["batch", "sequence", 3]},
    "ErnieMForQuestionAnswering": {"start_logits": ["batch", "sequence"], "end_logits": ["batch", "sequence"]},
    "ErnieMForInformationExtraction": {"start_logits": ["batch", "sequence"], "end_logits": ["batch", "sequence"]},
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build()


def session_of(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def small(name: str = "ErnieMForTokenClassification") -> Any:
    return make(name, torch.float32, num_hidden_layers=1)[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_every_model_and_head(tmp_path: Path, tokenizer: Any, name: str) -> None:
    changes = {} if "QuestionAnswering" in name else {"num_labels": 3}
    layers = 2 if name == "ErnieMModel" else 1
    plain, model = make(name, torch.float32, vocab_size=len(tokenizer), num_hidden_layers=layers, **changes)
    path = export_onnx(model, tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert not holds(path, str(ROOT))
    session = session_of(path)
    shape = ["batch", "choices", "sequence"] if name == "ErnieMForMultipleChoice" else ["batch", "sequence"]
    assert axes(session.get_inputs()) == {"input_ids": shape, "attention_mask": shape}
    assert {value.type for value in session.get_inputs()} == {"tensor(int64)"}
    expected = {
        key: [len(tokenizer) if axis == "vocab_size" else axis for axis in shape]
        for key, shape in OUTPUTS[name].items()
    }
    assert axes(session.get_outputs()) == expected
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["architecture"] == name
    assert metadata["model_type"] == "ernie_m"
    rows = real_rows(tokenizer, MAX_TOKENS)
    for how in ("right", "left", "holes"):
        assert_as_alone(session, plain, rows, how, MAX_TOKENS, 1e-5)
    for row in rows[:3]:  # one text of all tokens, of one, of two
        assert_as_alone(session, plain, [row], "right", len(row), 1e-5)


@pytest.mark.slow
def test_weights_beside_the_file_and_replaced_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tagger.onnx"
    model = small()
    with monkeypatch.context() as patch:
        patch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 1000)
        export_onnx(model, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tagger.onnx", "tagger.onnx.data"]
    batches = [batch((3, 9)), batch((1,))]
    assert onnx_difference(model, path, batches) < 1e-5
    other = small()
    assert onnx_difference(other, path, batches) > 1e-2
    export_onnx(other, path)
    assert [file.name for file in tmp_path.iterdir()] == ["tagger.onnx"]
    assert onnx_difference(other, path, batches) < 1e-5
    with torch.no_grad():
        other.classifier.bias[0] = torch.nan
    assert onnx_difference(other, path, batches) != onnx_difference(other, path, batches)  # NaN


@pytest.mark.slow
def test_float16(tmp_path: Path) -> None:
    model = small("ErnieMForQuestionAnswering").half()
    path = export_onnx(model, tmp_path / "model.onnx")
    assert {value.type for value in session_of(path).get_outputs()} == {"tensor(float16)"}
    assert 0 < onnx_difference(model, path, [batch((3, 9, 64))]) < 1e-2


def test_refused_models(tmp_path: Path) -> None:
    model, path = small(), tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"model must be in eval mode, model.eval\(\), got one whose dropout is on"):
        export_onnx(model.train(), path)
    model.eval()
    for dtype in (torch.bfloat16, torch.float64):
        with pytest.raises(ValueError, match=f"model must be float32, .* or float16 .*, got {dtype}"):
            export_onnx(model.to(dtype), path)
    with pytest.raises(TypeError, match="model must be an ErnieM model, adapters merged, got Linear"):
        export_onnx(nn.Linear(2, 2), path)
    assert not list(tmp_path.iterdir())


def test_refused_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: pytest.fail("exports before it looks"))
    with pytest.raises(IsADirectoryError, match=r"path='.*': expected the file to write, got a folder"):
        export_onnx(small(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"path='.*missing.*': expected a file in a folder that exists"):
        export_onnx(small(), tmp_path / "missing" / "model.onnx")


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda package: None if package == "onnxscript" else object())
    with pytest.raises(ImportError, match=r"needs the package onnxscript: pip install 'erniem_fast\[export\]'"):
        export_onnx(small(), tmp_path / "model.onnx")

"""Checkpoint folders of transformers 4.x in every published form, and comparisons of the models they give."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import erniem_fast
from erniem_fast import ErnieMConfig, reference
from helpers.paths import GOLDEN_MODEL

HEADS = (
    "ErnieMForSequenceClassification",
    "ErnieMForMultipleChoice",
    "ErnieMForTokenClassification",
    "ErnieMForQuestionAnswering",
    "ErnieMForInformationExtraction",
    "ErnieMForMaskedLM",
)
CONFIG_OF_4_40_2 = {
    "act_dropout": 0.0,
    "architectures": ["ErnieMModel"],
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 32,
    "id2label": {"0": "entailment", "1": "contradiction"},
    "initializer_range": 0.2,
    "intermediate_size": 48,
    "label2id": {"contradiction": 1, "entailment": 0},
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 66,
    "model_type": "ernie_m",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "transformers_version": "4.40.2",
    "type_vocab_size": 16,
    "vocab_size": 100,
}
IDS = torch.tensor([[0, 5, 9, 17, 2], [0, 40, 2, 1, 1]])
PARAMETERS_OF_4_40_2 = set(load_file(GOLDEN_MODEL / "model_right_padded" / "weights.safetensors"))
HEAD_KEYS_OF_4_40_2 = {
    "ErnieMForSequenceClassification": ({"classifier"}, True),
    "ErnieMForMultipleChoice": ({"classifier"}, True),
    "ErnieMForTokenClassification": ({"classifier"}, False),
    "ErnieMForQuestionAnswering": ({"qa_outputs"}, False),
    "ErnieMForInformationExtraction": ({"linear_start", "linear_end"}, True),
}
"""Linear layers of each head, and True if the model has a pooler."""


def config(**changes: Any) -> ErnieMConfig:
    return ErnieMConfig(**({k: v for k, v in CONFIG_OF_4_40_2.items() if k != "transformers_version"} | changes))


def make(name: str = "ErnieMModel", **changes: Any) -> Any:
    """Reference model with random parameters, biases and layer-norms included."""
    model = getattr(reference, name)(config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def weights(model: Any) -> dict[str, Tensor]:
    """State dict as 4.40.2 saves it: every name, no shared storage."""
    return {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}


def write(folder: Path, state: dict[str, Tensor], kind: str = "bin", **changes: Any) -> Path:
    """Folder in the form of transformers 4.x: `bin`, `safetensors`, or either in shards with an index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG_OF_4_40_2 | changes))
    stem, ending = ("model", "safetensors") if "safetensors" in kind else ("pytorch_model", "bin")

    def save(tensors: dict[str, Tensor], file: str) -> None:
        if ending == "bin":
            torch.save(tensors, folder / file)
        else:
            save_file(tensors, folder / file, metadata={"format": "pt"})

    if not kind.startswith("sharded"):
        save(state, f"{stem}.{ending}")
        return folder
    names, index = list(state), {}
    for shard in range(3):
        file = f"{stem}-{shard + 1:05}-of-00003.{ending}"
        # Interleaved, so that the parameters of a layer are spread over the shards.
        save({name: state[name] for name in names[shard::3]}, file)
        index |= dict.fromkeys(names[shard::3], file)
    size = sum(tensor.nbytes for tensor in state.values())
    content = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(content))
    return folder


def load(folder: Path, name: str = "ErnieMModel", models: Any = erniem_fast, **options: Any) -> tuple[Any, dict]:
    return getattr(models, name).from_pretrained(folder, output_loading_info=True, **options)


def outputs(model: Any, ids: Tensor = IDS) -> list[Tensor]:
    """Floating-point outputs at the real tokens, the positions at which the two models agree."""
    mask = ids != 1
    if "MultipleChoice" in type(model).__name__:
        return [model(ids[None], attention_mask=mask[None].long())[0].detach()]
    with torch.no_grad():
        results = model(ids, attention_mask=mask.long(), return_dict=True)
    return [value[mask] if value.shape[:2] == ids.shape else value for value in results.values()]


def assert_agree(found: Any, expected: Any, ids: Tensor = IDS) -> None:
    """Compare outputs, relative to the largest magnitude."""
    pairs = list(zip(outputs(found, ids), outputs(expected, ids), strict=True))
    assert pairs
    for one, other in pairs:
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * scale)


def assert_holds(model: Any, state: dict[str, Tensor]) -> None:
    """Check that the model's state dict is bitwise `state`, without further keys."""
    found = model.state_dict()
    assert found.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(found[key], value), key


def assert_nothing_to_report(info: dict) -> None:
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info


def paddle_style(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {re.sub(r"self_attn\.(self_attn\.[qkv]_proj)", r"\1", key): value for key, value in state.items()}


def fused(state: dict[str, Tensor], inner: str = "") -> dict[str, Tensor]:
    """State dict with fused projections, under `self_attn.` or with `inner` under `self_attn.self_attn.`."""
    result = {key: value for key, value in state.items() if "_proj." not in key or "out_proj" in key}
    for key in state:
        if "self_attn.self_attn.q_proj." in key:
            stem, kind = key.split("self_attn.q_proj.")
            parts = [state[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            result[f"{stem}{inner}in_proj_{kind}"] = torch.cat(parts)
    assert len(result) < len(state)
    return result


def golden_folder(tmp_path: Path, case: str) -> Path:
    """Folder of a golden case with file names that `from_pretrained` reads."""
    folder = tmp_path / case
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes((GOLDEN_MODEL / case / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes((GOLDEN_MODEL / case / "weights.safetensors").read_bytes())
    return folder


FORMS = {
    "as it is": lambda state: state,
    "paddle": paddle_style,
    "fused": fused,
    "fused inside": lambda state: fused(state, "self_attn."),
    "half of each": lambda state: {
        **{k: v for k, v in fused(state).items() if "layers.0" in k},
        **{k: v for k, v in paddle_style(state).items() if "layers.0" not in k},
    },
}

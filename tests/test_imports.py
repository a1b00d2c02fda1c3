"""Imports run downward only, and the folder `kernels` shadows nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

PACKAGE = ROOT / "erniem_fast"
# Each may import from those before it.
LAYERS = [
    "version", "adapters", "auto_map", "configuration",
    "tokenization.alignment", "tokenization.windows", "tokenization.parts", "tokenization.segmentation",
    "tokenization.encodings", "tokenization.samples", "tokenization.vocabulary", "tokenization.memory",
    "tokenization.tokenizer", "tokenization.__init__",
    "kernels.dropout", "kernels.tables", "kernels.configs", "kernels.jit", "kernels.common",
    "kernels.attention_tiles", "kernels.attention_forward", "kernels.attention_backward", "kernels.attention",
    "kernels.segment_sum", "kernels.layer_norm", "kernels.activation", "kernels.embedding",
    "kernels.linear", "kernels.mlp", "kernels.linear_cross_entropy",
    "ops.backend", "ops.onednn", "ops.rows_cpu", "ops.dropout_cpu", "ops.dropout", "ops.attention_cpu",
    "ops.attention_torch", "ops.attention", "ops.layer_norm", "ops.activation", "ops.mlp", "ops.embedding",
    "ops.linear", "ops.linear_cross_entropy", "ops.__init__",
    "validation", "packing", "inputs", "outputs", "fusion", "layer_parts", "cpu_layer", "encoder",
    "paddle_names", "checkpoints", "pretrained", "modules", "losses", "heads", "token_heads", "reference", "modeling",
    "export", "packed", "packed_heads", "families", "xlm", "padding_free", "explain",
    "inference.__init__", "inference.batch_invariance", "inference.projections", "inference.progress",
    "inference.layers", "inference.prepacking", "inference.cpu_streams",
    "inference.tokens", "inference.arguments", "inference.graphs", "inference.task",
    "inference.runner", "inference.stream", "inference.loading", "inference.precision", "inference.quantisation",
    "inference.checkpoint_files", "inference.sentence_modules", "inference.settings", "inference.pooling",
    "inference.texts", "inference.embedding",
    "inference.scores", "inference.runs", "inference.classification", "inference.schema", "inference.spans",
    "inference.tagging", "inference.question_answering", "inference.zero_shot", "inference.extraction",
    "inference.engine", "inference.encoder_process", "__init__", "sentence_transformers",
    "inference.server.settings", "inference.server.errors", "inference.server.schemas", "inference.server.floats",
    "inference.server.batcher", "inference.server.metrics", "inference.server.guard", "inference.server.service",
    "inference.server.info", "inference.server.routes", "inference.server.openai", "inference.server.pipelines",
    "inference.server.app", "inference.server.__init__", "inference.server.run",
    "training.losses", "training.collators", "training.processes", "training.sampler", "training.students",
    "training.distill", "training.augment", "training.__init__",
    "training.objectives.vocabulary", "training.objectives.rows", "training.objectives.masking",
    "training.objectives.base", "training.objectives.masked_lm", "training.objectives.camlm",
    "training.objectives.btmlm", "training.objectives.ernie", "training.objectives.xlm",
    "training.objectives.model", "training.objectives.__init__",
    "array_pickle", "paddle_ernie_m", "paddle_ernie", "paddle",
    "files.__init__", "files.errors", "files.atomic", "files.source", "files.records", "files.formats", "files.partial",
    "files.output", "files.rows",
    "training.objective", "training.optimizer", "training.exact_trainer", "training.trainer", "training.callbacks",
    "training.presets", "training.card", "training.run_folder", "training.machine",
    "training.tasks.__init__", "training.tasks.base", "training.tasks.labels", "training.tasks.classify",
    "training.tasks.conll", "training.tasks.alignment", "training.tasks.tag", "training.tasks.multiple_choice",
    "training.contrastive", "training.sentence_folder", "training.tasks.characters", "training.tasks.tokenized",
    "training.tasks.question_answering", "training.tasks.extract", "training.tasks.embed",
    "training.finetune", "training.distilling", "training.streams", "training.mixing", "training.readers",
    "training.family_objectives", "training.pretraining_settings", "training.pretraining_trainer", "training.pretrain",
    "cli.__init__", "cli.errors", "cli.folders", "cli.options", "cli.job", "cli.on_files", "cli.verify",
    "cli.demo", "cli.convert", "cli.export", "cli.extract", "cli.warm_up", "cli.embed",
    "cli.zero_shot", "cli.classify", "cli.tag", "cli.answer", "cli.serve",
    "cli.training", "cli.distill_options", "cli.finetune", "cli.finetune_tag", "cli.finetune_multiple_choice",
    "cli.finetune_spans", "cli.finetune_embed", "cli.pretrain", "cli.main",
]  # fmt: skip
MODULES = sorted(p for p in PACKAGE.rglob("*.py")) + sorted((ROOT / "kernels").glob("*.py"))


def name_of(path: Path) -> str:
    if path.parent == ROOT / "kernels":
        return f"kernels.{path.stem}"
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    """Modules of this package that a file imports, functions and type-checking blocks included."""
    found: set[str] = set()
    names = {name_of(module) for module in MODULES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ["erniem_fast", *name_of(path).split(".")][: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if node.module:
                found.add(base)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                is_package = f"{full}.__init__".removeprefix("erniem_fast.") in names
                is_module = full.removeprefix("erniem_fast.") in names
                found.add(full if is_module else f"{full if is_package else base}.__init__")
    ours = {name.removeprefix("erniem_fast.") for name in found if name.startswith("erniem_fast.")}
    # `from erniem_fast import X` reads the package's __init__.
    if "erniem_fast" in found:
        ours.add("__init__")
    return ours & names


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_downward(path: Path) -> None:
    name = name_of(path)
    assert name in LAYERS, f"say in LAYERS where {name} belongs"
    above = {other for other in imports_of(path) if LAYERS.index(other) >= LAYERS.index(name)}
    assert not above, f"{name} imports {sorted(above)}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_imports_tests_or_bench(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & {"tests", "bench"}


@pytest.mark.slow
def test_kernels_has_no_init_and_transformers_imports_beside_it() -> None:
    """Hugging Face's package `kernels` must stay reachable: a regular package of that name would shadow it."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert (PACKAGE / "kernels").is_symlink()
    code = "import transformers.modeling_utils, erniem_fast, erniem_fast.kernels.dropout; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr


def test_the_tokenizer_needs_no_torch() -> None:
    """Nothing up to it among the layers imports torch."""
    for name in LAYERS[: LAYERS.index("tokenization.__init__") + 1]:
        assert "import torch" not in (PACKAGE / f"{name.replace('.', '/')}.py").read_text(), name

"""Settings of a sentence-transformers folder: pooling, modules, prompts, lengths, a CrossEncoder's activation.

settings = read_settings("intfloat/multilingual-e5-base")
settings.pooling, settings.prompts, settings.modules

The files of sentence-transformers 2 to 6 are read; the package itself is not needed. What is unknown and could change
the vectors is refused by name, and nothing that a folder names is imported.
"""

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from tokenizers import normalizers
from torch import nn

from .checkpoint_files import CheckpointFiles
from .sentence_modules import BUILDERS, Normalize, activation, build, check_flag, check_keys, check_size

__all__ = ["Normalize", "SentenceSettings", "prepare", "prompt_length", "read_settings"]

MODULE = re.compile(r"sentence_transformers\.(?:\w+\.)*(\w+)", re.ASCII)
"""Class of a module: the last name of the dotted path, whatever the version that wrote it."""
OURS = "erniem_fast.sentence_transformers.Transformer"
MODEL_TYPES = ("SentenceTransformer", "CrossEncoder")
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
MODES = {
    "cls": "cls", "max": "max", "mean": "mean", "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weightedmean", "lasttoken": "lasttoken",
}  # fmt: skip
"""Name in `pooling.POOLINGS` of each mode of Pooling."""
FLAGS = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
"""Mode of each flag that older versions wrote, in the order in which the vectors are joined."""
WIDTHS = ("embedding_dimension", "word_embedding_dimension")
"""Names of the model's width in Pooling's file."""
HIDDEN_SIZES = ("hidden_size", "dim", "emb_dim")
"""Names of the model's width in its configuration."""
TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""The first module's settings: the first of these."""
OUTPUTS = {"feature-extraction": "last_hidden_state", "sequence-classification": "logits"}
"""Output of the model that each task of a Transformer reads."""
OLD_NAMES = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs", "config_args": "config_kwargs"}
KNOWN_ARGUMENTS = {
    "model_kwargs": ("dtype", "torch_dtype", "attn_implementation", "add_pooling_layer", "low_cpu_mem_usage"),
    "processor_kwargs": ("model_max_length", "use_fast", "padding_side", "clean_up_tokenization_spaces"),
    "config_kwargs": ("dtype", "torch_dtype", "attn_implementation", "num_labels"),
}
"""Arguments of loading in a Transformer's file: the length is read, the others change no vector."""
TRANSFORMER_KEYS = (
    "max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name", "processing_kwargs",
    "unpad_inputs", "query_length", "document_length", "query_expansion", *KNOWN_ARGUMENTS,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class SentenceSettings:
    """What a folder says about how its vectors or scores are made.

    Attributes:
        pooling: names in `pooling.POOLINGS`, whose vectors are joined in this order.
        modules: what the joined vectors go through, in order, each from (num_texts, width) float32 to the same of
            another width. In eval mode, on the CPU.
        max_seq_length: most tokens of a text, special ones included; the model may take fewer. None: not said.
        prompts: text that is put before each text, by name; before the first text of a CrossEncoder's pair.
        default_prompt_name: name of the prompt where the caller names none, or None.
        include_prompt: False: a prompt's tokens are left out of the pooling, see `prompt_length`.
        lowercase: texts are lower-cased, see `prepare`.
        activation: of a CrossEncoder's scores; None where the folder says nothing.
        similarity: "cosine", "dot", "euclidean" or "manhattan", by which vectors are compared; None: not said.
        model_folder: subfolder of the model and its tokenizer; "": none.
        truncate_dim: so many numbers are kept of each vector, behind `modules`; None: all.
        model_type: "SentenceTransformer", "CrossEncoder", or None for a folder that sentence-transformers did not
            write.
    """

    pooling: tuple[str, ...] = ("mean",)
    modules: tuple[nn.Module, ...] = ()
    max_seq_length: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    include_prompt: bool = True
    lowercase: bool = False
    activation: nn.Module | None = None
    similarity: str | None = None
    model_folder: str = ""
    truncate_dim: int | None = None
    model_type: str | None = None


def read_settings(name: str) -> SentenceSettings:
    """Read a folder's settings.

    Args:
        name: a folder, or user/name on the Hugging Face Hub. One that sentence-transformers did not write gives the
            defaults: the mean of a text's tokens, and nothing else.

    Raises:
        CheckpointError: a module or setting that we don't know, by its name; a file that is missing or can't be read.
    """
    files = CheckpointFiles(name)
    listed = files.read_json("modules.json", list)
    if listed is None:
        # Older versions wrote no list of a CrossEncoder's modules.
        own = _activation(files, "")
        known: dict[str, Any] = (
            {} if own is None else {"activation": own, "model_type": "CrossEncoder"} | _of_transformer(files, "")
        )
        return SentenceSettings(**known)
    with files.naming("modules.json"):
        kinds, folders = _kinds(listed)
    fields = _of_transformer(files, folders[0]) | {"activation": _activation(files, folders[0])} | _of_model(files)
    if fields["model_type"] == "CrossEncoder":
        if len(kinds) > 1:
            raise files.error("modules.json", f"a CrossEncoder must be a Transformer alone, got {', '.join(kinds)}")
    elif len(kinds) == 1:
        raise files.error("modules.json", "lists nothing but a Transformer; expected a Pooling behind it")
    else:
        fields |= _of_pooled(files, kinds, folders)
    return SentenceSettings(**fields, model_folder=folders[0])


def prompt_length(tokenizer: Any, prompt: str, max_tokens: int) -> int:
    """Count the tokens at the start of a text that are a prompt's, as sentence-transformers does.

    They are those of the prompt alone, cut to `max_tokens`, without a special token at the end: one too many where the
    prompt's last space joins the text's first word.

    Args:
        tokenizer: of the model.
        prompt: text before each text.
        max_tokens: most tokens of a text.
    """
    if not prompt:
        return 0
    ids = tokenizer([prompt], verbose=False)["input_ids"][0]
    closed = bool(ids) and ids[-1] in tokenizer.all_special_ids
    return min(len(ids), max_tokens) - closed


def prepare(tokenizer: Any, settings: SentenceSettings) -> None:
    """Make a tokenizer cut and lower-case texts as a folder says; special tokens in a text are not lower-cased.

    Args:
        tokenizer: one of transformers, or ours, which is changed.
        settings: of the folder.
    """
    if settings.max_seq_length is not None:
        tokenizer.model_max_length = settings.max_seq_length
    if settings.lowercase and hasattr(tokenizer, "backend_tokenizer"):
        backend = tokenizer.backend_tokenizer
        others = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *others])
    elif settings.lowercase:
        tokenizer.do_lower_case = True


def _kinds(listed: list[Any]) -> tuple[list[str], list[str]]:
    """Class and subfolder of each module that modules.json lists."""
    kinds, folders, known = [], [], ("Transformer", "Pooling", *BUILDERS)
    for entry in listed:
        path, folder = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (entry, None)
        found = MODULE.fullmatch(path) if isinstance(path, str) else None
        kind = "Transformer" if path == OURS else found[1] if found else None
        if kind not in known:
            raise ValueError(f"unknown module {path!r:.200}; known are sentence-transformers' {', '.join(known)}")
        if not isinstance(folder, str) or PureWindowsPath(folder).anchor or ".." in PureWindowsPath(folder).parts:
            raise ValueError(f"path of {kind} must be a subfolder, got {folder!r:.200}")
        kinds.append(kind)
        folders.append("" if folder in ("", ".") else str(PurePosixPath(folder)))
    if kinds[:1] != ["Transformer"] or kinds[1:2] not in ([], ["Pooling"]) or not {*kinds[2:]} <= BUILDERS.keys():
        order = ", ".join(kinds) or "none"
        raise ValueError(f"modules must be Transformer, Pooling, then any of {', '.join(BUILDERS)}; got {order}")
    return kinds, folders


def _of_model(files: CheckpointFiles) -> dict[str, Any]:
    """Read what belongs to no module."""
    file = "config_sentence_transformers.json"
    held = files.read_json(file) or {}
    with files.naming(file):
        prompts, default = held.get("prompts") or {}, held.get("default_prompt_name")
        similarity, kind = held.get("similarity_fn_name"), held.get("model_type", MODEL_TYPES[0])
        if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
            raise ValueError(f"prompts must hold texts by name, got {prompts!r:.80}")
        if default is not None and default not in prompts:
            raise ValueError(
                f"default_prompt_name must be one of {', '.join(prompts) or 'no prompts'}, got {default!r}"
            )
        if similarity not in (None, *SIMILARITIES):
            raise ValueError(f"similarity_fn_name must be one of {', '.join(SIMILARITIES)}, got {similarity!r}")
        if kind not in MODEL_TYPES:
            raise ValueError(f"model_type must be {' or '.join(MODEL_TYPES)}, got {kind!r}")
        own = held.get("activation_fn")
        return {
            "prompts": {name: text or "" for name, text in prompts.items()},
            "default_prompt_name": default,
            "similarity": similarity,
            "truncate_dim": check_size(held, "truncate_dim", None),
            "model_type": kind,
            **({} if own is None else {"activation": activation(own)}),
        }


def _activation(files: CheckpointFiles, folder: str) -> nn.Module | None:
    """Read a CrossEncoder's activation from the model's configuration, where older versions put it."""
    file = _inside(folder, "config.json")
    held = files.read_json(file) or {}
    with files.naming(file):
        own = held.get("sentence_transformers")
        path = own.get("activation_fn") if isinstance(own, dict) else None
        path = held.get("sbert_ce_default_activation_function") if path is None else path
        return None if path is None else activation(path)


def _of_transformer(files: CheckpointFiles, folder: str) -> dict[str, Any]:
    """Read the settings of the first module, and how many tokens its tokenizer and its model take."""
    found = ((file, files.read_json(file)) for file in (_inside(folder, name) for name in TRANSFORMER_FILES))
    file, held = next(((file, held) for file, held in found if held), (_inside(folder, TRANSFORMER_FILES[0]), {}))
    held = {OLD_NAMES.get(name, name): value for name, value in held.items()}
    with files.naming(file):
        check_keys(held, TRANSFORMER_KEYS)
        for name, known in KNOWN_ARGUMENTS.items():
            check_keys(held.get(name) or {}, known, f"{name}.")
        _check_output(held)
        most = _text_length(held.get("processing_kwargs") or {})
        most = most or check_size(held.get("processor_kwargs") or {}, "model_max_length", None)
        most = most or check_size(held, "max_seq_length", None)
        lower = check_flag(held, "do_lower_case", False)
    return {"max_seq_length": most or _longest(files, folder), "lowercase": lower}


def _check_output(held: dict[str, Any]) -> None:
    """Refuse a Transformer that reads anything but the model's plain output for a text."""
    task = held.get("transformer_task", "feature-extraction")
    if task not in OUTPUTS:
        raise ValueError(f"transformer_task must be {' or '.join(OUTPUTS)}, got {task!r}")
    modalities = held.get("modality_config") or {"text": {"method": "forward", "method_output_name": OUTPUTS[task]}}
    text = modalities.get("text") if isinstance(modalities, dict) else None
    reads = (text.get("method"), text.get("method_output_name")) if isinstance(text, dict) else (None, None)
    if reads not in (("forward", OUTPUTS[task]), ("forward", [OUTPUTS[task]])) or "message" in modalities:
        raise ValueError(f"modality_config must read {OUTPUTS[task]} of forward for texts, got {modalities!r:.200}")


def _text_length(processing: dict[str, Any]) -> int | None:
    """Read the length from the tokenizer's arguments, and refuse others that change its tokens."""
    check_keys(processing, ("text", "common"), "processing_kwargs.")
    arguments = {**(processing.get("common") or {}), **(processing.get("text") or {})}
    check_keys(arguments, ("max_length", "padding", "truncation", "return_tensors"), "processing_kwargs.text.")
    if arguments.get("truncation", True) not in (True, "longest_first"):
        raise ValueError(f"processing_kwargs.text.truncation must be true, got {arguments['truncation']!r}")
    return check_size(arguments, "max_length", None)


def _longest(files: CheckpointFiles, folder: str) -> int | None:
    """Most tokens that both the tokenizer and the model name, where neither names the folder's own."""
    lengths = []
    for name, key in (("tokenizer_config.json", "model_max_length"), ("config.json", "max_position_embeddings")):
        file = _inside(folder, name)
        value = (files.read_json(file) or {}).get(key)
        # A tokenizer without a length has one of 1e30.
        if isinstance(value, int) and 0 < value < 2**31:
            lengths.append(value)
    return min(lengths, default=None)


def _of_pooled(files: CheckpointFiles, kinds: list[str], folders: list[str]) -> dict[str, Any]:
    """Read the pooling and the modules behind it."""
    file = f"{folders[1]}/config.json"
    held = files.read_json(file)
    if held is None:
        raise files.error(file, "no such file")
    with files.naming(file):
        check_keys(held, (*WIDTHS, "pooling_mode", "include_prompt", *FLAGS))
        pooling = _modes(held)
        include_prompt = check_flag(held, "include_prompt", True)
        width = check_size(held, next((name for name in WIDTHS if name in held), WIDTHS[0]))
    model = files.read_json(_inside(folders[0], "config.json")) or {}
    width = next((model[name] for name in HIDDEN_SIZES if name in model), width) * len(pooling)
    modules = []
    for kind, folder in zip(kinds[2:], folders[2:], strict=True):
        file = f"{folder}/config.json"
        held = files.read_json(file)
        if held is None and kind != "Normalize":  # of which older versions wrote no file
            raise files.error(file, "no such file")
        with files.naming(file):
            module, width = build(kind, held or {}, partial(files.read_weights, folder), width)
        modules += [] if module is None else [module]
    return {"pooling": pooling, "include_prompt": include_prompt, "modules": tuple(modules)}


def _modes(held: dict[str, Any]) -> tuple[str, ...]:
    flagged = [mode for flag, mode in FLAGS.items() if check_flag(held, flag, False)]
    modes = held.get("pooling_mode", flagged or "mean")
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not all(isinstance(mode, str) and mode in MODES for mode in modes):
        raise ValueError(f"pooling_mode must be of {', '.join(MODES)}, got {held.get('pooling_mode')!r}")
    return tuple(MODES[mode] for mode in modes)


def _inside(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file

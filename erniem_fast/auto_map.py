"""Saved folders that load by themselves: transformers finds our classes in them where nobody imported this package.

Beside what transformers writes, a folder gets `auto_map` in config.json and in tokenizer_config.json, and the module
`erniem_fast_auto.py` that those name, which imports the classes from here. With `trust_remote_code=True`,
`AutoModel.from_pretrained`, `pipeline` and whatever is built on them then run that module. Needs no torch.
"""

import os
from typing import Any, ClassVar

MODULE = "erniem_fast_auto"
"""Name of the module in saved folders."""

MODEL_TYPE = "ernie_m"
CONFIG_CLASS, TOKENIZER_CLASS = "ErnieMConfig", "ErnieMTokenizer"
MODEL_CLASSES = {
    "AutoModel": "ErnieMModel",
    "AutoModelForMaskedLM": "ErnieMForMaskedLM",
    "AutoModelForMultipleChoice": "ErnieMForMultipleChoice",
    "AutoModelForQuestionAnswering": "ErnieMForQuestionAnswering",
    "AutoModelForSequenceClassification": "ErnieMForSequenceClassification",
    "AutoModelForTokenClassification": "ErnieMForTokenClassification",
}
"""Name of the model class that each of transformers' Auto classes builds."""

SOURCE = f"""\
# Lets transformers find the classes of this checkpoint (trust_remote_code=True). Needs: pip install erniem_fast
from erniem_fast import {", ".join(sorted([CONFIG_CLASS, *MODEL_CLASSES.values(), TOKENIZER_CLASS]))}
"""


def write_module(folder: str | os.PathLike) -> str:
    """Write the module that `auto_map` names into a folder, and return its path."""
    path = os.path.join(folder, f"{MODULE}.py")
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(SOURCE)
    return path


def _reference(class_name: str) -> str:
    return f"{MODULE}.{class_name}"


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


class _Named:
    """Mixin of classes that every saved folder names."""

    auto_classes: ClassVar[dict[str, str]]
    """Name of the class that each Auto class of its kind builds."""

    @classmethod
    def register_for_auto_class(cls, auto_class: str | type | None = None) -> None:
        """Do nothing for our classes: every saved folder names them. A user's subclass is copied into its folders.

        Args:
            auto_class: an Auto class or its name; None: the first of its kind.

        Raises:
            ValueError: `auto_class` does not load the class.
        """
        if auto_class is None:
            auto_class = next(iter(cls.auto_classes))
        if not _is_ours(cls):
            super().register_for_auto_class(auto_class)  # type: ignore[misc]
            return
        accepted = [name for name, built in cls.auto_classes.items() if built == cls.__name__]
        name = auto_class.__name__ if isinstance(auto_class, type) else auto_class
        if name not in accepted:
            loaded_by = f"expected {accepted[0]}" if accepted else "no Auto class builds it"
            raise ValueError(f"auto_class={name!r}: saved folders don't load {cls.__name__} by it; {loaded_by}")


class SelfLoadingConfig(_Named):
    """Mixin of a configuration whose saved folders load by themselves."""

    auto_classes = {"AutoConfig": CONFIG_CLASS}

    model_type: str
    auto_map: dict[str, str]

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save config.json, with `auto_map`, and the module that it names; see `PreTrainedConfig.save_pretrained`."""
        # Classes of the user's that transformers has just copied into the folder stay in the map.
        copied = {
            auto_class: reference
            for auto_class, reference in (getattr(self, "auto_map", None) or {}).items()
            if os.path.isfile(os.path.join(save_directory, f"{reference.partition('.')[0]}.py"))
        }
        # A subclass that is another type of model is none of the classes' configuration.
        classes = {"AutoConfig": CONFIG_CLASS} | MODEL_CLASSES if self.model_type == MODEL_TYPE else {}
        self.auto_map = {auto_class: _reference(name) for auto_class, name in classes.items()} | copied
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)  # type: ignore[misc]
        write_module(save_directory)

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        write_module(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)  # type: ignore[misc]


class SelfLoadingModel(_Named):
    """Mixin of models with a `SelfLoadingConfig`, which does the saving."""

    auto_classes = MODEL_CLASSES


class SelfLoadingTokenizer(_Named):
    """Mixin of a tokenizer whose saved folders load by themselves."""

    auto_classes = {"AutoTokenizer": TOKENIZER_CLASS}

    @property
    def _auto_map(self) -> dict[str, list[str | None]]:
        # transformers writes it into tokenizer_config.json: first a tokenizer in Python, then one in Rust.
        return {"AutoTokenizer": [_reference(TOKENIZER_CLASS), None]}

    def _save_pretrained(
        self, save_directory: str | os.PathLike, file_names: tuple[str, ...], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        file_names = (*file_names, write_module(save_directory))
        return super()._save_pretrained(save_directory, file_names, *args, **kwargs)  # type: ignore[misc]

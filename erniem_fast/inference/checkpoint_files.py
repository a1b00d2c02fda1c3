"""Files of a checkpoint, in a folder or on the Hugging Face Hub, with one-line errors that name the file."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file
from torch import Tensor

from .loading import HUB_ID, CheckpointError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class CheckpointFiles:
    """Files of a checkpoint.

    Args:
        name: a folder, or user/name on the Hub. A folder of that name goes first; in anything else there are no files.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def find(self, file: str) -> Path | None:
        """Path of a file, which is downloaded first where it is on the Hub; None where there is no such file.

        Raises:
            CheckpointError: the Hub can't be asked.
        """
        if os.path.isdir(self.name):
            path = Path(self.name) / file
            return path if path.is_file() else None
        if os.path.exists(self.name) or HUB_ID.fullmatch(self.name) is None:
            return None
        try:
            return Path(hf_hub_download(self.name, file))
        except LocalEntryNotFoundError as error:
            # Offline the cache counts. Elsewhere no answer is not "no such file", whose settings would be lost.
            if constants.HF_HUB_OFFLINE or try_to_load_from_cache(self.name, file) is _CACHED_NO_EXIST:
                return None
            raise self.error(file, f"can't be asked for on the Hub ({_line(error)})") from error
        except (EntryNotFoundError, RepositoryNotFoundError):
            return None
        except Exception as error:
            raise self.error(file, f"can't be asked for on the Hub ({_line(error)})") from error

    def read_json(self, file: str, kind: type = dict) -> Any:
        """Read a JSON file, or None where there is no such file.

        Raises:
            CheckpointError: it is no JSON, or holds something else than a `kind`.
        """
        path = self.find(file)
        if path is None:
            return None
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self.error(file, f"can't be read ({_line(error)}); expected UTF-8 JSON") from error
        if not isinstance(held, kind):
            expected = "an object" if kind is dict else "a list"
            raise self.error(file, f"must hold {expected}, got {held!r:.80}")
        return held

    def read_weights(self, folder: str) -> Mapping[str, Tensor]:
        """Read a module's weights.

        Raises:
            CheckpointError: there are none, or they can't be read.
        """
        files = [f"{folder}/{name}" for name in WEIGHTS]
        for file in files:
            path = self.find(file)
            if path is None:
                continue
            try:
                if path.suffix == ".safetensors":
                    return load_file(path)
                weights = torch.load(path, map_location="cpu", weights_only=True)
                return {str(name): tensor for name, tensor in weights.items() if isinstance(tensor, Tensor)}
            except Exception as error:  # of safetensors, pickle, zipfile
                raise self.error(file, f"can't be read ({_line(error)})") from error
        raise self.error(files[0], f"no such file, and no {WEIGHTS[1]} either")

    def error(self, file: str, problem: str) -> CheckpointError:
        """Error that names the checkpoint and the file."""
        return CheckpointError(f"model {self.name!r}: {file}: {problem}")

    @contextmanager
    def naming(self, file: str) -> Iterator[None]:
        """Make a CheckpointError that names the checkpoint and the file of another ValueError."""
        try:
            yield
        except CheckpointError:
            raise
        except ValueError as error:
            raise self.error(file, str(error)) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

"""transformers' own common tests, out of the source distribution of the release that is installed."""

import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

import transformers

FILE = "test_modeling_common.py"
PACKAGE = "transformers_common_tests"
MISSING_SIBLINGS = {
    "exporters.test_export": "ExportTesterMixin",
    "generation.test_utils": "GenerationTesterMixin",
}
"""Modules that `FILE` imports and the source distribution leaves out, each with the class that is asked of it."""


class SourceNotFoundError(Exception):
    """The source distribution could not be fetched; the message is pip's last line."""


@cache
def modeling_common() -> ModuleType:
    """transformers' module tests/test_modeling_common.py, with empty classes for the siblings that it lacks.

    Raises:
        SourceNotFoundError: if the file isn't in the cache and pip can't fetch it.
    """
    path = _fetched(transformers.__version__)
    package = _add_module(PACKAGE)
    package.__path__ = []
    for name, class_name in MISSING_SIBLINGS.items():
        _add_module(f"{PACKAGE}.{name.split('.')[0]}").__path__ = []
        setattr(_add_module(f"{PACKAGE}.{name}"), class_name, type(class_name, (), {}))
    name = f"{PACKAGE}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _add_module(name: str) -> ModuleType:
    return sys.modules.setdefault(name, ModuleType(name))


def _fetched(version: str) -> Path:
    """The file in the user's cache, fetched by pip if it isn't there yet."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(home, "erniem_fast", f"transformers-{version}", FILE)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        command = f"pip download transformers=={version} --no-binary transformers --no-deps --quiet --dest".split()
        done = subprocess.run([sys.executable, "-m", *command, scratch], capture_output=True, text=True)
        if done.returncode:
            raise SourceNotFoundError(
                f"no source of transformers {version}: {(done.stderr.splitlines() or ['no pip'])[-1]}"
            )
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as files:
            member = files.extractfile(f"transformers-{version}/tests/{FILE}")
            assert member is not None
            unpacked = Path(scratch, FILE)
            unpacked.write_bytes(member.read())
        unpacked.replace(path)  # at once: another worker may be fetching, too
    return path

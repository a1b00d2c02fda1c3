"""Folders of the command line: there as a whole at the end, or not at all.

with whole_folder("--onnx", "out") as folder:
    (folder / "config.json").write_text("{}")
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files.atomic import naming
from .errors import InputError

ACCEPTED_FOLDER = "expected an empty folder, or the name of a new one in a folder that exists"


@contextmanager
def whole_folder(option: str, out: str) -> Iterator[Path]:
    """Fill a new folder beside `out`, which takes its name at the end; if anything is raised it is removed.

    Args:
        option: name of `out` in errors.
        out: path of the folder, which may exist if it is empty. Its parents must exist.

    Raises:
        InputError: there are files in it, or no such folder can be written. Known at once, before any work.
    """
    target = Path(os.path.realpath(out))
    with naming(f"{option} {out!r}", ACCEPTED_FOLDER):
        # A file is "Not a directory".
        filled = target.exists() and any(os.scandir(target))
        if filled:
            raise InputError(f"{option} {out!r}: holds files; {ACCEPTED_FOLDER}")
        folder = Path(tempfile.mkdtemp(prefix=".erniem-fast-", dir=target.parent))
    try:
        with naming(f"{option} {out!r}", ACCEPTED_FOLDER):
            yield folder
            _open_to_others(folder)
            if target.exists():  # empty; Windows replaces no folder
                target.rmdir()
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _open_to_others(folder: Path) -> None:
    """Give a temporary folder, which is its owner's alone, the mode of any other."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)

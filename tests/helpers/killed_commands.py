"""The command line in processes that can be killed, without the seconds that importing torch takes.

A server of processes imports everything once, and forks itself for each command.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers.paths import ROOT
from helpers.processes import PATIENCE

CODE = """
import json, os, sys, traceback
import torch
torch.set_num_threads(1)
from erniem_fast.cli.main import app
from erniem_fast.files import output
output.SECONDS_UNKEPT = 0
os.fsync = lambda descriptor: None  # what a killed process has written is there without it
print("ready", flush=True)
for line in sys.stdin:
    arguments, errors = json.loads(line)
    process = os.fork()
    if not process:
        code = 70
        try:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            os.dup2(2, 1)
            app(arguments)
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Commands:
    """A server of processes."""

    def __init__(self, folder: Path) -> None:
        self.errors = folder / "stderr"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", CODE], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._read() == "ready"

    def start(self, *arguments: Any) -> int:
        """Start a command; the number of its process."""
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps([list(map(str, arguments)), str(self.errors)]) + "\n")
        self.server.stdin.flush()
        return int(self._read())

    def wait(self) -> int:
        """Exit code of the command, or the negative number of the signal that ended it."""
        return int(self._read())

    def close(self) -> None:
        self.server.communicate(timeout=PATIENCE)

    def _read(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()

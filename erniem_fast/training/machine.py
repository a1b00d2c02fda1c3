"""The machine of a run: its device and dtype, and which of its processes this one is.

machine = Machine("auto", "auto")
arguments = TrainingArguments(use_cpu=machine.place.type == "cpu", **DTYPES[machine.settle_dtype(run)])
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..files.errors import InputError
from ..inference.precision import auto_dtype
from .run_folder import RunFolder

DTYPES: dict[str, dict[str, Any]] = {"float32": {}, "bfloat16": {"bf16": True}, "float16": {"fp16": True}}
"""What Trainer is told for each dtype of computing; weights are float32 throughout."""


@dataclass(frozen=True)
class Machine:
    """What a run computes in and on.

    Args:
        dtype: "float32", "bfloat16", "float16", or "auto": bfloat16 where that is fast, else float32.
        device: "cpu", "cuda", or "auto": a GPU if there is one.

    Raises:
        InputError: float16 on a CPU.
    """

    dtype: str
    device: str

    def __post_init__(self) -> None:
        if self.dtype == "float16" and self.place.type == "cpu":
            raise InputError("--dtype 'float16': a CPU has no loss scaling; expected float32 or bfloat16")

    @property
    def place(self) -> torch.device:
        """Kind of the device; each process takes its own."""
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")

    @property
    def rank(self) -> int:
        """Number of this process, as torchrun and accelerate give it; 0 is the one that prints and writes."""
        return int(os.environ.get("RANK", "0"))

    @property
    def processes(self) -> int:
        """Number of the run's processes."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def leads(self) -> bool:
        """True on the process that prints and writes."""
        return self.rank == 0

    def once(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """What takes lines on the process that prints, and drops those of the others."""
        return say if self.leads else lambda line: None

    def settle_dtype(self, run: RunFolder) -> str:
        """Name of the dtype to compute in, the same each time that the run is gone on with."""
        if self.dtype != "auto":
            return self.dtype
        if "dtype" not in run.settled:
            # A processor is asked by a measurement, on which processes might not agree.
            alone = self.processes == 1 or self.place.type == "cuda"
            name = str(auto_dtype(self.place) if alone else torch.float32).removeprefix("torch.")
            if not self.leads:
                return name
            run.settle(**{**run.settled, "dtype": name})
        return str(run.settled["dtype"])

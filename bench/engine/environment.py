"""Facts about the machine, the packages and the checkout that a figure depends on."""

import gc
import hashlib
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import erniem_fast

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "bench" / "results"
SOURCES = ("erniem_fast", "kernels", "bench")
"""Folders whose code a figure depends on."""
PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "numpy")
CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw", "clocks_event_reasons.active")


def now() -> str:
    """Date and time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe(device: str) -> dict[str, Any]:
    """Date, commit, digest of the sources, machine and versions: the head of every result file."""
    status = git("status", "--porcelain", "--", ".", ":!bench/results")
    about: dict[str, Any] = {
        "date": now(),
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "sources": digest(*SOURCES),
        "device": device,
        "processor": processor(device),
        "versions": versions(),
    }
    if device == "cuda":
        return about | {"driver": (nvidia_smi("driver_version") or {}).get("driver_version")}
    capability = torch.backends.cpu.get_cpu_capability()
    return about | {"cpu_capability": capability, "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def git(*arguments: str) -> str | None:
    """Output of git in this project's own repository, or None where there is none: git also finds one further up."""
    top = _git("rev-parse", "--show-toplevel")
    return _git(*arguments) if top is not None and Path(top).resolve() == ROOT.resolve() else None


def _git(*arguments: str) -> str | None:
    command = ["git", "-c", f"safe.directory={ROOT.resolve()}", *arguments]  # a copied tree may be another user's
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def digest(*folders: str) -> str:
    """Digest of the code and data in folders of the checkout, results excluded: it needs no git."""
    paths = {path for folder in folders for end in ("py", "json") for path in (ROOT / folder).rglob(f"*.{end}")}
    found = hashlib.sha256()
    for path in sorted(path for path in paths if RESULTS not in path.parents):
        found.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def processor(device: str) -> str:
    """Name of the processor that computes."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(about: dict[str, Any]) -> str:
    """Name of the device in a file's name."""
    return "cpu" if about["device"] == "cpu" else about["processor"].lower().replace("nvidia ", "").replace(" ", "-")


def versions() -> dict[str, str | None]:
    """Versions of Python and the packages; None: not installed."""
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "interpreted": os.environ.get("TRITON_INTERPRET", "0"),
        "erniem_fast": erniem_fast.__version__,
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def nvidia_smi(*fields: str) -> dict[str, str] | None:
    """Fields of the first GPU as nvidia-smi prints them, or None without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else None


def others_seconds() -> float | None:
    """Processor seconds that other processes have taken so far, the host's included; None outside Linux."""
    try:
        fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, soft_irq, steal = map(int, fields[:8])
    own = os.times()
    total = (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")
    return total - own.user - own.system - own.children_user - own.children_system


def release(device: str) -> None:
    """Give back the memory that the case before held."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()

"""Where a result comes from: versions, machine, commit."""

import hashlib
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import lrbench

__all__ = ["code_hash", "device_name", "environment"]


@cache
def environment() -> dict[str, Any]:
    """Give versions, platform and commit."""
    commit, dirty = _commit()
    return {
        "lrbench": lrbench.__version__,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with the build, which the package's own version need not name
        **{name: version(name) for name in ("numpy", "scipy")},
        "platform": platform.platform(),
        "processor": _processor(),
    }


@cache
def code_hash() -> str:
    """Hash the package's source, but for the report, which changes no run: another commit may compute otherwise."""
    package = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if "report" not in path.relative_to(package).parts:
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def device_name(device: str) -> str:
    """Name a device: a GPU's model, or the CPU as ``cpu``; one that is not here, as it was asked for."""
    here = device.startswith("cuda") and torch.cuda.is_available()
    return torch.cuda.get_device_name(device) if here else device


def _commit() -> tuple[str | None, bool | None]:
    """The commit of the checkout that lrbench runs from, if it does, and whether the package differs from it."""
    package = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.parent:
            return None, None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

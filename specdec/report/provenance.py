"""Under which circumstances a number was measured."""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("specdec-lab", "torch", "transformers", "accelerate", "hydra-core", "numpy")


def provenance(device: torch.device, dtype: str, attention: str) -> dict[str, Any]:
    """Collect versions, source state, hardware and the command line."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "argv": sys.argv,
        "git": _git_state(),
        "versions": {"python": platform.python_version(), **_versions()},
        "device": _device_name(device),
        "num_threads": torch.get_num_threads(),
        "num_processes": int(os.environ.get("WORLD_SIZE", "1")),
        "dtype": dtype,
        "attention": attention,
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the checkout that the code runs from; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} ({device.type})"

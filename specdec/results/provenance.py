"""Under which circumstances a number was measured."""

import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from specdec.core.digest import digest_of, inputs_of

PACKAGES = ("specdec-lab", "torch", "transformers", "accelerate", "hydra-core", "numpy")


def provenance(
    device: torch.device, dtype: str, attention: str, runtime: str = "eager"
) -> dict[str, Any]:
    """Collect versions, source state, hardware, how models run, and the command line."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "argv": sys.argv,
        "git": _git_state(),
        "source": source_digest(),
        "versions": {"python": platform.python_version(), **_versions()},
        "device": _device_name(device),
        "num_threads": torch.get_num_threads(),
        "num_processes": int(os.environ.get("WORLD_SIZE", "1")),
        "dtype": dtype,
        "attention": attention,
        "runtime": runtime,
    }


@lru_cache(maxsize=1)  # what this process runs; files that are edited later are another's
def source_digest() -> str:
    """Return a digest of the package's own source: commits say nothing of what is not committed."""
    spec = find_spec("specdec")
    found: dict[str, bytes] = {}
    for place in (spec and spec.submodule_search_locations) or ():
        for file in inputs_of(Path(place)):
            if file.suffix == ".py":
                found[file.relative_to(place).as_posix()] = file.read_bytes()
    return digest_of(b"\n".join(found[name] for name in sorted(found)))


def of_other_code(runs: Iterable[Path]) -> str | None:
    """Say which of some complete runs are of another state of this package; None if none is."""
    states: Counter[str] = Counter()
    for run in runs:
        try:
            known = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if known.get("source") != source_digest():
            states[code_state(known)] += 1
    if not states:
        return None
    listed = "; ".join(f"{number} by {state}" for state, number in states.items())
    return f"decoded by other code than this: {listed}; resume=false decodes anew"


def code_state(known: Mapping[str, Any]) -> str:
    """Say which code a run's provenance names: `0.1.0 at 1a2b3c4, changed, source 5d6e7f`."""
    git = known.get("git") or {}
    version = (known.get("versions") or {}).get("specdec-lab") or "unknown version"
    commit = f" at {git['commit'][:7]}" if git.get("commit") else ""
    changed = ", changed" if git.get("dirty") else ""
    return f"{version}{commit}{changed}, source {str(known.get('source'))[:6]}"


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
        # Looking must not lock: a full disk would leave the lock behind, and git unusable.
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} ({device.type})"

"""Where a training run's metrics go beside `metrics.jsonl`: any tracker that accelerate knows."""

import netrc
import os
from collections.abc import Mapping
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from specdec.core.errors import UserError, require

TRACKERS = ("jsonl", "wandb", "tensorboard", "trackio")


def log_with(tracker: str) -> str | None:
    """Return what accelerate is to log with; `jsonl` needs nothing.

    Raises:
        UserError: no such tracker, or its package is not installed.
    """
    require(tracker in TRACKERS, "tracker", tracker, "one of " + ", ".join(TRACKERS))
    if tracker == "jsonl":
        return None
    if find_spec(tracker) is None:
        raise UserError(f"tracker={tracker!r}: not installed; pip install {tracker}")
    return tracker


def start_trackers(accelerator: Accelerator, output: Path, config: Mapping[str, Any]) -> None:
    """Begin the run, or go on with it: its id is that of the output folder.

    wandb without an account logs offline, never asks, and says how to upload later.
    """
    wandb: dict[str, Any] = {
        "name": output.name,
        "id": sha256(str(output.resolve()).encode()).hexdigest()[:12],
        "resume": "allow",
        "dir": str(output),
        "job_type": "train",
        "settings": {"silent": True},
    }
    if config["log_with"] == "wandb" and "WANDB_MODE" not in os.environ and not _has_wandb_key():
        wandb["mode"] = "offline"
        runs = f"{output}/wandb/offline-run-*"
        accelerator.print(f"wandb: no account here; upload with: wandb sync {runs}")
    known = {name: value for name, value in config.items() if value is not None}
    accelerator.init_trackers("specdec", config=known, init_kwargs={"wandb": wandb})


def _has_wandb_key() -> bool:
    """Whether wandb would find a key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False

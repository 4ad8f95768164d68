"""What a tracker calls a training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

IN_SWEEP = "trained"  # the folder of weights within a run's, which bears the options that are swept


def tracked_name(told: Mapping[str, Any], output: Path) -> str:
    """Say what is trained by which loss on which verifier, and in which folder."""
    folder = output.resolve()
    label = folder.parent.name if folder.name == IN_SWEEP else folder.name
    parts = [str(told[name]) for name in ("train", "loss") if name in told]
    parts += ["joint"] if told.get("joint") is True else []
    if "verifier.path" in told:
        parts.append(Path(str(told["verifier.path"])).name.rpartition(":")[2])
    return "-".join([*parts, label])

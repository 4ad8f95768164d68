"""What a tracker calls a training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

IN_SWEEP = "trained"  # the folder of weights within a run's, which bears the options that are swept


def tracked_name(options: Mapping[str, Any], output: Path) -> str:
    """Say what is trained by which loss on which verifier, and in which folder."""
    folder = output.resolve()
    label = folder.parent.name if folder.name == IN_SWEEP else folder.name
    parts = [str(options[name]) for name in ("train", "loss") if name in options]
    parts += ["joint"] if options.get("joint") is True else []
    if "verifier.path" in options:
        parts.append(Path(str(options["verifier.path"])).name.rpartition(":")[2])
    return "-".join([*parts, label])

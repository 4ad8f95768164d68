"""The processes that train together, started by `torchrun` or `accelerate launch`."""

import os

import torch

from specdec.core.errors import UserError
from specdec.results.processes import Processes


def joined() -> Processes:
    """Return the processes that train together; without a GPU they know of each other, too.

    There accelerate would take each for the only one, and all would write one folder.
    """
    on_cpu = not torch.accelerator.is_available()
    if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    return Processes("cpu" if on_cpu else "cuda")


def require_processes(found: int) -> None:
    """Refuse processes that do not know of each other.

    Raises:
        UserError: there are more or fewer than the launcher has started.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if found != started:
        raise UserError(
            f"WORLD_SIZE={started}: the launcher's processes, of which accelerate sees {found};"
            " expected a device for each, or ACCELERATE_USE_CPU=true"
        )

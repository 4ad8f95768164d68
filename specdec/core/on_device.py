"""Numbers of the host as tensors on a device, for which the host does not wait."""

from collections.abc import Sequence

import torch
from torch import Tensor


def on_device(
    values: Sequence[object], device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """Return numbers, or lists of them, as a tensor on a device."""
    return sent(torch.tensor(values, dtype=dtype), device)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device.

    From pinned memory a copy stands in line behind the device's work; from any other the host
    would wait for all of that.
    """
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)

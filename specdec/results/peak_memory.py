"""How much memory a run needs at its peak: of the GPU, or of the process."""

import resource
import sys
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what Linux wants to be told


class PeakMemory:
    """Forget the peak so far; `num_bytes` is the highest since then.

    On a GPU what torch allocated there, else the process's resident memory: models, caches and
    libraries. Where a system cannot forget (macOS, some containers), the peak is that of the
    process since its start.
    """

    def __init__(self, device: torch.device):
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            _forget()

    @property
    def num_bytes(self) -> int:
        """The highest number of bytes so far."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _resident_peak()


def _forget() -> None:
    try:
        CLEAR.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return  # not Linux, or not allowed


def _resident_peak() -> int:
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024

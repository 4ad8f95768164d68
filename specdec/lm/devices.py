"""Where models run, and which types they compute in there."""

import os
from collections.abc import Mapping

import torch

from specdec.core.errors import UserError, require

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"
NAMES = (*DTYPES, AUTO)


EXPECTED = "cpu, cuda or cuda:0, ..., or auto"


def checked_device(device: str) -> torch.device:
    """Turn a name into a device that is there; of `auto`, all of them, return the first.

    Raises:
        UserError: it is not there.
    """
    if device == AUTO:
        return torch.device(training_device())
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(f"device={device!r}: expected {EXPECTED}") from None
    require(found.type in ("cpu", "cuda"), "device", device, EXPECTED)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device!r}: no GPU is available here; use device=cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={device!r}: there are {torch.cuda.device_count()} GPUs")
    return found


def require_dtype(name: object) -> None:
    """Refuse what is no type.

    Raises:
        UserError: it is none.
    """
    known = isinstance(name, str) and name in NAMES
    require(known, "dtype", name, "one of " + ", ".join(NAMES))


def settled_dtype(name: str, device: torch.device) -> str:
    """Return the type that a name stands for: for `auto` bfloat16 where it is computed in.

    Elsewhere bfloat16 is converted for each product, which is slower than float32 and less exact.
    """
    if name != AUTO:
        return name
    return "bfloat16" if computes_in_bfloat16(device) else "float32"


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16, by what the hardware says of itself."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Since torch 2.13; what the versions before are asked is of x86 alone.
    say = getattr(torch.cpu, "get_capabilities", None)
    if say is None:
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    found: Mapping[str, object] = say()
    return any(name.endswith("bf16") and value is True for name, value in found.items())


def memory_of(device: torch.device) -> int:
    """Return the bytes of memory that a device has, free or not; of a CPU those of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def training_device() -> str:
    """Name where trainings run, which nothing says otherwise: as accelerate chooses."""
    return "cuda" if torch.cuda.is_available() else "cpu"

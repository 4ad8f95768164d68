"""Operations for which the host waits for the device: no graph can hold them, and each costs time.

What is found is named with the line that asked for it. Branches that are only taken on a GPU are
found only there.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ATEN: Any = torch.ops.aten
# What needs a number on the host, if only to know how large its result is.
READS = {
    *(ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select, ATEN.equal, ATEN.is_nonzero),
    *(ATEN._unique2, ATEN.unique_dim, ATEN.unique_consecutive, ATEN.bincount),
}
INDEXED = {ATEN.index, ATEN.index_put, ATEN.index_put_}
COPIES = {ATEN.copy_, ATEN._to_copy}
# What is no operation of its own: these read memory, or are a copy where there is a GPU.
CALLS: dict[Any, str] = {Tensor.tolist: "tolist", Tensor.cpu: "cpu", Tensor.numpy: "numpy"}
INDEXING = {Tensor.__getitem__, Tensor.__setitem__}
CONSTANTS: dict[Any, str] = {torch.tensor: "torch.tensor", torch.as_tensor: "torch.as_tensor"}


class CaptureError(RuntimeError):
    """Something cannot be captured; says where it stands."""


@contextmanager
def noting_waits(note: Callable[[str], None]) -> Iterator[None]:
    """Call `note` with "operation at file:line" before each wait within."""
    with _Calls(note), _Operations(note):
        yield


@contextmanager
def refusing_waits() -> Iterator[None]:
    """Raise at the first wait within.

    Raises:
        CaptureError: what it is, and where.
    """

    def refuse(wait: str) -> None:
        raise CaptureError(f"{wait}: the host would have to wait for the device")

    with noting_waits(refuse):
        yield


class _Calls(TorchFunctionMode):
    """Finds methods that read without an operation that `_Operations` would see."""

    def __init__(self, note: Callable[[str], None]):
        super().__init__()
        self._note = note

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = CALLS.get(func)
        if func in CONSTANTS and kwargs.get("device") is not None:
            found = CONSTANTS[func]  # which is written to memory of the host first
        if func in INDEXING and _has_list(args[1]):
            found = "index by a list"  # the same
        if found is not None:
            self._note(f"{found} at {_place()}")
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    """Finds operations whose result the host must know, and copies from or to it."""

    def __init__(self, note: Callable[[str], None]):
        super().__init__()
        self._note = note

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in READS or (packet in INDEXED and any(map(_is_mask, args[1]))):
            self._note(f"{packet} at {_place()}")
        elif packet in COPIES and _between_devices(args, kwargs):
            self._note(f"{packet} between devices at {_place()}")
        return func(*args, **kwargs)


def _has_list(index: object) -> bool:
    return isinstance(index, list) or (isinstance(index, tuple) and any(map(_has_list, index)))


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _between_devices(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    devices = {each.device for each in args if isinstance(each, Tensor)}
    if kwargs.get("device") is not None:
        devices.add(torch.device(kwargs["device"]))
    return len(devices) > 1


def _place() -> str:
    """Name the line that asked for it, the last one that is neither torch's own nor of here."""
    frames = [
        frame
        for frame in traceback.extract_stack()
        if "/torch/" not in frame.filename and frame.filename != __file__
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"

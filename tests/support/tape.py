"""An emulator of CUDA graph capture on the CPU: what a graph gets wrong, it gets wrong here.

A graph keeps the kernels of one run with their arguments: Python values are those of that run,
storages are those of that run, and nothing may be read by the host meanwhile. Here the operations
of one run are kept and run again on the same storages; `poison` fills everything that a run makes
on its way with numbers that are none, as another graph of the same memory pool would.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from specdec.runtime.host_waits import refusing_waits


class Call(NamedTuple):
    """One operation that is run again."""

    function: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    results: Sequence[Tensor]  # which it makes anew: none, where it writes in place


class TapeGraph:
    """Keeps the operations of one run; `replay` runs them again, on what lies there then."""

    def __init__(self) -> None:
        self._calls: list[Call] = []

    def capture(self, program: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """Run a program and keep its operations; returns the tensors that replays write to.

        Raises:
            CaptureError: it reads from the device, or its sizes depend on numbers there.
        """
        with torch.no_grad(), _Recorder(self._calls), refusing_waits():
            return program()

    def replay(self) -> None:
        """Run all operations again, on the same storages."""
        with torch.no_grad():
            for call in self._calls:
                found = list(_tensors(call.function(*call.args, **call.kwargs)))
                for kept, new in zip(call.results, found, strict=False):
                    if _storage(kept) != _storage(new):
                        kept.copy_(new)

    def poison(self) -> None:
        """Fill what a run makes on its way with numbers that are none, or name no cell."""
        for call in self._calls:
            for each in call.results:
                each.fill_(float("nan") if each.is_floating_point() else 99)


class Pool:
    """Tapes that share their memory: each replay spoils what the others made."""

    def __init__(self) -> None:
        self.tapes: list[PooledTape] = []

    def new_tape(self) -> "PooledTape":
        """Return an empty tape."""
        return PooledTape(self)


class PooledTape(TapeGraph):
    """One tape of several; a capture keeps work without doing it, as far as anyone can tell."""

    def __init__(self, pool: Pool):
        super().__init__()
        self._pool = pool
        pool.tapes.append(self)

    def capture(self, program: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """Keep the operations of a run whose results nobody can use."""
        results = super().capture(program)
        self.poison()
        return results

    def replay(self) -> None:
        """Run again on garbage, and leave garbage to all others."""
        for tape in self._pool.tapes:
            tape.poison()
        super().replay()


class _Recorder(TorchDispatchMode):
    def __init__(self, calls: list[Call]):
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        written = [each.alias_info for each in func._schema.arguments]
        in_place = any(each is not None and each.is_write for each in written)
        results = list(_tensors(found))
        given = {_storage(each) for each in _tensors([*args, *kwargs.values()])}
        same = bool(results) and all(_storage(each) in given for each in results)
        is_view = same and not in_place
        if not is_view:  # the same storage: nothing to do again
            self._calls.append(Call(func, args, kwargs, () if in_place else results))
        return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

"""A model's steps as graphs: recorded once for each shape, then run again by one call of the host.

A graph knows addresses and sizes, nothing else: each step copies its inputs to where the recorded
one had them. Nothing here knows a GPU; see `Tape`.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from specdec.runtime.host_waits import refusing_waits
from specdec.runtime.preparation import preparing
from specdec.runtime.program import Inputs, Kind, Wanted
from specdec.runtime.proven import Steps

SMALLEST = 256  # cells in sight of a graph, where the buffers have so many
MOST_GRAPHS = 64  # of one model; each costs megabytes of the driver's memory


class Tape(Protocol):
    """Keeps the device's work of one run of a program: a CUDA graph, or what stands in for one."""

    def capture(self, program: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """Keep the work of a program, done or not; returns the tensors that replays write to."""
        ...

    def replay(self) -> None:
        """Do the work again, on what lies at the same addresses now."""
        ...


class GraphKey(NamedTuple):
    """Which graph serves a step."""

    kind: Kind
    num_rows: int  # B
    num_new: int  # M
    length: int  # cells in sight, those that no mask shows included
    capacity: int
    addresses: tuple[int, ...]  # of the buffers

    @classmethod
    def of(cls, inputs: Inputs, wanted: Wanted) -> "GraphKey":
        """Round up the cells in sight to a power of two, or to all that there are."""
        capacity = inputs.buffers[0].shape[2]
        length = min(capacity, max(SMALLEST, 1 << (len(inputs.columns) - 1).bit_length()))
        addresses = tuple(each.data_ptr() for each in inputs.buffers)
        num_rows, num_new = inputs.token_ids.shape
        return cls(Kind.of(inputs, wanted), num_rows, num_new, length, capacity, addresses)


class Graph(NamedTuple):
    """One step that was captured, and where it reads and writes."""

    tape: Tape
    static: Inputs  # without the buffers, whose memory is not the graph's to keep
    results: Sequence[Tensor]
    storages: Sequence["weakref.ref[Any]"]  # of the buffers

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Run the step with other inputs of the same shape."""
        _fill(self.static, inputs)
        self.tape.replay()
        # The next replay, of this graph or of one with the same memory pool, may write there. On
        # the device the copy stands in line before it.
        return tuple(each.clone() for each in self.results)

    @property
    def is_lost(self) -> bool:
        """Whether a buffer is gone: its cache was allocated anew."""
        return any(each() is None for each in self.storages)


class GraphSteps:
    """The graphs of one model, each captured when its shape first comes up.

    Args:
        steps: what is captured; run a few times before, so whatever it compiles is compiled.
        new_tape: makes what keeps the work of one run.
        most: graphs that are kept; beyond that the one that was not used for longest goes.
        linted: whether steps are searched for waits before: not those of a compiler, which has
            refused them already, and would compile anew for who watches.
    """

    def __init__(
        self,
        steps: Steps,
        new_tape: Callable[[], Tape],
        most: int = MOST_GRAPHS,
        linted: bool = True,
    ):
        self._steps = steps
        self._new_tape = new_tape
        self._most = most
        self._linted = linted
        self._graphs: OrderedDict[GraphKey, Graph] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(self, inputs: Inputs, wanted: Wanted = ()) -> tuple[Tensor, ...]:
        """Run a step; returns what is wanted.

        Raises:
            CaptureError: the step waits for the device; says where.
        """
        key = GraphKey.of(inputs, wanted)
        if key not in self._graphs:
            with preparing():
                self._add(key, inputs)
        self._graphs.move_to_end(key)
        return self._graphs[key](inputs)

    def _add(self, key: GraphKey, inputs: Inputs) -> None:
        """Capture a step. It is run before, which writes the same cells as it will once more."""
        static = _widened(inputs, key.length)
        wanted = key.kind.wanted
        self._steps(static, wanted)
        if self._linted:
            with refusing_waits():
                self._steps(static, wanted)
        tape = self._new_tape()
        results = tape.capture(lambda: self._steps(static, wanted))
        storages = [weakref.ref(each.untyped_storage()) for each in inputs.buffers]
        self._graphs[key] = Graph(tape, static._replace(buffers=()), results, storages)
        # Behind the capture, which waited for the device: what goes is not at work.
        self._drop()

    def _drop(self) -> None:
        for key in [key for key, graph in self._graphs.items() if graph.is_lost]:
            del self._graphs[key]
        while len(self._graphs) > self._most:
            self._graphs.popitem(last=False)


def _widened(inputs: Inputs, length: int) -> Inputs:
    """Return inputs of the same step in tensors of their own, with `length` cells in sight."""
    columns = torch.arange(length, device=inputs.columns.device)
    masks = tuple(mask.new_empty(*mask.shape[:3], length) for mask in inputs.masks)
    tokens, positions, slots = (torch.empty_like(each) for each in inputs[:3])
    draws = tuple(map(torch.empty_like, inputs.draws))
    static = Inputs(tokens, positions, slots, columns, masks, inputs.buffers, draws)
    _fill(static, inputs)
    return static


def _fill(static: Inputs, inputs: Inputs) -> None:
    """Copy a step's inputs to where a graph reads them; cells behind the step's are hidden."""
    given = (*inputs[:3], *inputs.draws)
    for ours, theirs in zip((*static[:3], *static.draws), given, strict=True):
        ours.copy_(theirs)
    length = len(inputs.columns)  # without masks, a cell sees none behind its slot
    for ours, theirs in zip(static.masks, inputs.masks, strict=True):
        ours[..., :length].copy_(theirs)
        ours[..., length:].fill_(torch.finfo(ours.dtype).min)

"""Compiled graphs, called without what a compiler's front end does before each call.

That looks up every weight of the model by its name, each time: a tenth of a small model's step. The
weights of a program stay where they are, so they are looked up once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_symbols

Argument = Tensor | tuple[Tensor, ...]
Program = Callable[..., tuple[Tensor, ...]]
Graph = Callable[..., Sequence[Tensor]]  # of tensors and sizes, in the compiler's order


class Size(NamedTuple):
    """Where a number of a graph is read: an input's size or stride, or where its storage begins."""

    place: int  # of the input
    read: Callable[[Any], int]


class DirectProgram:
    """A program of tensors that is compiled at its first call, and called directly from then on.

    Args:
        function: of tensors, and tuples of them, to a tuple of tensors.
        backend: of `torch.compile`.
        dynamic: whether all sizes may differ; None: those that are marked so.
    """

    def __init__(self, function: Program, backend: str, dynamic: bool | None = None):
        self._first: _FirstRun | None = None
        self._backend = torch._dynamo.lookup_backend(backend)
        # Who calls says what a program serves; guards cost a quarter of a small step.
        unguarded: Any = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        self._through_front_end = torch.compile(
            function, fullgraph=True, backend=self._compile, options=unguarded, dynamic=dynamic
        )
        self._direct: _Direct | None = None
        self._is_looked_at = False

    def __call__(self, *inputs: Argument) -> tuple[Tensor, ...]:
        """Run the program.

        Raises:
            Exception: whatever the compiler says of code that it cannot compile.
        """
        if self._direct is not None:
            return self._direct(_flat(inputs))
        found = self._through_front_end(*inputs)
        if self._first is not None:
            self._direct = _Direct.of(self._first, _flat(inputs), found)
            self._first, self._is_looked_at = None, True
        return found

    def _compile(self, graph: torch.fx.GraphModule, examples: list[Any]) -> Graph:
        """Let the backend compile; remember how its graph is called."""
        shapes = [node.meta["example_value"] for node in graph.graph.find_nodes(op="placeholder")]
        compiled: Any = self._backend(graph, examples)
        # Without what keeps the front end away from it: nobody who calls it directly is watched.
        run: Graph = getattr(compiled, "_torchdynamo_orig_callable", compiled)

        def noted(*arguments: Any) -> Sequence[Tensor]:
            results = run(*arguments)
            if not self._is_looked_at:
                self._first = _FirstRun(run, shapes, arguments, results)
            return results

        return noted


class _FirstRun(NamedTuple):
    """How the front end called a graph."""

    graph: Graph
    shapes: Sequence[Any]  # of the arguments, in the compiler's symbols
    arguments: Sequence[Any]  # weights, inputs, and sizes
    results: Sequence[Tensor]


class _Direct:
    """Calls a graph with its weights, and the inputs of the moment."""

    def __init__(
        self,
        graph: Graph,
        constants: list[Any],
        tensors: Sequence[tuple[int, int]],
        sizes: Sequence[tuple[int, Size]],
        results: Sequence[int],
    ):
        self._graph = graph
        self._constants = constants  # of the graph's arguments those that stay; else None
        self._tensors = tensors  # (argument, input)
        self._sizes = sizes
        self._results = results  # which of the graph's results each of the program's is

    @classmethod
    def of(
        cls, first: _FirstRun, inputs: Sequence[Tensor], results: Sequence[Tensor]
    ) -> "_Direct | None":
        """Find out from one call what is passed where; None: not everything is told apart."""
        places = {id(each): place for place, each in enumerate(inputs)}
        found = {id(each): place for place, each in enumerate(first.results)}
        if len(places) < len(inputs) or not all(id(each) in found for each in results):
            return None
        held = [places.get(id(each)) for each in first.arguments]
        where = _sizes(first.shapes, held)
        pairs = zip(first.shapes, held, strict=True)
        # Nobody knows whose those are of which no tensor is passed: an input's, perhaps.
        weights = [each for each, place in pairs if place is None and isinstance(each, Tensor)]
        own_sizes = free_symbols(weights)
        constants: list[Any] = []
        tensors, sizes = list[tuple[int, int]](), list[tuple[int, Size]]()
        for number, (given, shape) in enumerate(zip(first.arguments, first.shapes, strict=True)):
            place, size = places.get(id(given)), where.get(str(shape))
            own = isinstance(given, Tensor) or free_symbols(shape) <= own_sizes
            stays = place is None and size is None and own
            constants.append(given if stays else None)
            if place is not None:
                tensors.append((number, place))
            elif not stays:
                if size is None:
                    return None
                sizes.append((number, size))
        kept = [found[id(each)] for each in results]
        return cls(first.graph, constants, tensors, sizes, kept)

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        arguments = self._constants.copy()
        for argument, place in self._tensors:
            arguments[argument] = inputs[place]
        for argument, (place, read) in self._sizes:
            arguments[argument] = read(inputs[place])
        found = self._graph(*arguments)
        return tuple([found[each] for each in self._results])


def _sizes(shapes: Sequence[Any], places: Sequence[int | None]) -> dict[str, Size]:
    """Return where each of the compiler's symbols can be read."""
    found: dict[str, Size] = {}
    for shape, place in zip(shapes, places, strict=True):
        if place is not None and isinstance(shape, Tensor):
            for read in _numbers(shape.dim()):
                found.setdefault(str(read(shape)), Size(place, read))
    return found


def _numbers(num_dims: int) -> list[Callable[[Any], int]]:
    """Return what can be read of a tensor."""
    dims = range(num_dims)
    sizes = [partial(_size, dim=dim) for dim in dims]
    return [*sizes, *(partial(_stride, dim=dim) for dim in dims), _offset]


def _size(tensor: Tensor, dim: int) -> int:
    return tensor.shape[dim]


def _stride(tensor: Tensor, dim: int) -> int:
    return tensor.stride(dim)


def _offset(tensor: Any) -> int:
    return tensor.storage_offset()  # a symbol stays one


def _flat(inputs: Sequence[Argument]) -> list[Tensor]:
    found: list[Tensor] = []
    for each in inputs:
        if isinstance(each, tuple):
            found.extend(each)
        else:
            found.append(each)
    return found

"""A function of tensors that is compiled, and believed once it said what it says eagerly."""

from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from specdec.core.errors import first_line
from specdec.runtime.compiled import INDUCTOR, tracing
from specdec.runtime.direct import DirectProgram
from specdec.runtime.kernels.operators import have_kernels
from specdec.runtime.preparation import preparing
from specdec.runtime.program import Expected, Function
from specdec.runtime.proven import PROOFS, RefusedError, require_equal

Sizes = tuple[int, ...]


class CompiledFunction:
    """Run a function by programs; calls of the first unlike sizes are made eagerly as well.

    A size of 1 is a constant to compilers, so there is one program for each choice of such sizes;
    it serves all others.

    Args:
        function: of tensors, to tensors; the weights that it reads must stay as they are.
        dtype: in which it computes.
        called: what complaints call it.
        guarded: whether each call makes sure that nothing but sizes has changed since the first:
            small functions spend a third of their time on that.
        backend: of `torch.compile`.
        expected: what a program should say; None: what the function itself says.
    """

    def __init__(
        self,
        function: Function,
        dtype: torch.dtype,
        called: str,
        guarded: bool = True,
        backend: str = INDUCTOR,
        expected: Expected | None = None,
    ):
        self._eagerly = function
        self._expected = expected or (lambda inputs, _: function(*inputs))
        self._dtype = dtype
        self._called = called
        self._guarded, self._backend = guarded, backend
        self._programs: dict[Sizes, Function] = {}
        self._seen: dict[Sizes, set[Sizes]] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Call the function.

        Raises:
            RefusedError: it cannot be compiled, or the program says something else.
        """
        sizes = tuple(size for each in inputs for size in each.shape)
        ones = tuple(place for place, size in enumerate(sizes) if size == 1)
        seen = self._seen.setdefault(ones, set())
        if len(seen) >= PROOFS or sizes in seen:
            return self._programs[ones](*inputs)
        with preparing():
            found = self._tried(ones, inputs)
            expected = self._expected(inputs, found)
            require_equal("compiled", self._called, self._dtype, found, expected)
        seen.add(sizes)
        return found

    def _tried(self, ones: Sizes, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        program = self._programs.get(ones) or self._compiled()
        try:
            device = inputs[0].device
            kernels = self._backend == INDUCTOR and have_kernels(self._dtype, device)
            with tracing(self._dtype, device, kernels):
                found = program(*inputs)
        except Exception as problem:  # whatever a compiler raises
            raise RefusedError(
                f"runtime='compiled': {self._called} cannot be compiled here"
                f" ({first_line(problem)}); runtime=eager runs it"
            ) from problem
        self._programs[ones] = program
        return found

    def _compiled(self) -> Function:
        # The compiler remembers programs by their code object, of which each gets its own.
        given: Any = self._eagerly
        own: Any = FunctionType(
            given.__code__.replace(), given.__globals__, closure=given.__closure__
        )
        if self._guarded:
            return torch.compile(own, fullgraph=True, dynamic=True, backend=self._backend)
        return DirectProgram(own, self._backend, dynamic=True)

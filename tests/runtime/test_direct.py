"""Graphs called without the compiler's front end: the same results, for all sizes."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import mark_dynamic

from specdec.runtime import direct
from specdec.runtime.compiled import tracing
from specdec.runtime.direct import DirectProgram
from specdec.runtime.program import Function

WEIGHT = torch.arange(12.0).view(4, 3)


def scaled(x: Tensor, others: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return results in another order than a compiler might, one of them by sizes alone."""
    longest = torch.full((x.shape[0],), others[0].shape[0] + x.shape[0])
    return longest, x @ WEIGHT.t() + others[0].sum(), others[1] * 2


def inputs_of(rows: int, length: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    torch.manual_seed(rows * 100 + length)
    inputs = torch.randn(rows, 3), (torch.randn(length), torch.randn(2))
    mark_dynamic(inputs[0], 0)
    mark_dynamic(inputs[1][0], 0)
    return inputs


def compiled(function: Any = scaled) -> DirectProgram:
    torch._dynamo.reset()
    return DirectProgram(function, "aot_eager")


def equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.allclose(one, other) for one, other in zip(found, expected, strict=True))


def test_one_graph_serves_all_sizes() -> None:
    program = compiled()
    for rows, length in ((5, 7), (2, 9), (6, 6), (9, 2)):
        inputs = inputs_of(rows, length)
        assert equal(program(*inputs), scaled(*inputs))
    assert program._direct is not None


def test_the_front_end_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    program = compiled()
    program(*inputs_of(5, 7))
    monkeypatch.setattr(program, "_through_front_end", None)
    inputs = inputs_of(3, 4)
    assert equal(program(*inputs), scaled(*inputs))


def test_views_may_begin_anywhere() -> None:
    """Where a view begins in its storage is a number of the graph, too."""
    numbers = torch.arange(40.0)

    def shifted(x: Tensor) -> tuple[Tensor, ...]:
        return (x + x.shape[0],)

    program = compiled(shifted)
    for start, length in ((3, 5), (4, 7), (11, 2)):
        view = numbers.narrow(0, start, length)
        mark_dynamic(view, 0)
        assert equal(program(view), shifted(view))
    assert program._direct is not None


def test_writing_in_place_is_kept() -> None:
    def written(buffer: Tensor, slots: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        buffer[slots] = x
        return (buffer.sum(dim=0) + 1,)

    program = compiled(written)
    for slots in ([1, 2], [0, 3], [4, 2]):
        ours, theirs = torch.zeros(6, 3), torch.zeros(6, 3)
        x = torch.randn(2, 3)
        found = program(ours, torch.tensor(slots), x)
        assert equal(found, written(theirs, torch.tensor(slots), x))
        assert torch.equal(ours, theirs)
    assert program._direct is not None


@pytest.mark.parametrize("again", [lambda x: (x, x), lambda x: (x, x.clone())])
def test_what_cannot_be_told_apart_goes_through_the_front_end(again: Any) -> None:
    def both(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return x + y, x  # an input is no result of the graph

    program = compiled(both)
    for _ in range(3):
        x = torch.randn(4)
        assert equal(program(*again(x)), both(*again(x)))
    assert program._direct is None


class Settings(NamedTuple):
    """What a program is written for; compilers ask for its numbers as if they could differ."""

    size: int
    weight: Tensor


class Widening:
    def __init__(self, settings: Settings):
        self._settings = settings

    @property
    def program(self) -> Function:
        def widened(x: Tensor) -> tuple[Tensor, ...]:
            return (self._wide(x), x * self._settings.size)

        return widened

    def _wide(self, x: Tensor) -> Tensor:
        found = x @ self._settings.weight.t()
        missing = self._settings.size - found.shape[1]
        return found if missing == 0 else torch.nn.functional.pad(found, (0, missing))


@pytest.mark.parametrize("weight", [WEIGHT, nn.Parameter(WEIGHT)], ids=["tensor", "parameter"])
@pytest.mark.parametrize("size", [4, 9])
@torch.inference_mode()
def test_numbers_of_the_programs_own_stay(size: int, weight: Tensor) -> None:
    written = Widening(Settings(size, weight)).program
    torch._dynamo.reset()
    program = DirectProgram(written, "aot_eager", dynamic=True)
    with tracing(torch.float32, torch.device("cpu"), kernels=False):
        program(torch.randn(5, 3))
    for rows in (6, 2, 7):
        x = torch.randn(rows, 3)
        assert equal(program(x), written(x))
    assert program._direct is not None


def test_inputs_of_which_only_the_size_is_read_are_not_taken_for_constants() -> None:
    def beside(x: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
        return (x * columns.shape[0],)

    torch._dynamo.reset()
    program = DirectProgram(beside, "aot_eager", dynamic=True)
    for length in (5, 7, 2):
        inputs = torch.randn(4, 3), torch.arange(length)
        assert equal(program(*inputs), beside(*inputs))


def test_what_cannot_be_called_directly_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    program, looks = compiled(), list[object]()
    monkeypatch.setattr(direct._Direct, "of", lambda *found: looks.append(found))
    for rows, length in ((5, 7), (2, 9), (6, 6)):
        inputs = inputs_of(rows, length)
        assert equal(program(*inputs), scaled(*inputs))
    assert len(looks) == 1

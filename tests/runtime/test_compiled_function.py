"""Compiled functions: one program for all sizes, the same numbers as eagerly, or a refusal."""

from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.runtime.agreement import relative_difference
from specdec.runtime.choice import function_of
from specdec.runtime.compiled_function import CompiledFunction
from specdec.runtime.preparation import prepared_seconds
from specdec.runtime.program import reading_of
from specdec.runtime.proven import PROOFS, RefusedError
from tests.support.families import WINDOW, tiny_model

TYPICAL = ("llama", "gpt2", "gemma3_text")  # no rotations; windows in every second layer
SIZES = ((2, 7), (3, 5), (2, WINDOW + 9), (1, 6), (1, 12), (4, 3))


def traced(function: Any, guarded: bool = True) -> CompiledFunction:
    """Let the compiler read the program, and torch run what it made of it: no C++ is waited for."""
    return CompiledFunction(function, torch.float32, "a toy", guarded, backend="aot_eager")


def text(rows: int, length: int) -> Tensor:
    return torch.arange(rows * length).view(rows, length) % 50


@pytest.mark.whole
@pytest.mark.thorough
@pytest.mark.parametrize("family", TYPICAL)
@torch.no_grad()
def test_all_sizes_are_read_as_eagerly(family: str) -> None:
    model = tiny_model(family)
    read, before = traced(reading_of(model)), prepared_seconds()
    for size in SIZES:
        expected = model.base_model(input_ids=text(*size), use_cache=False).last_hidden_state
        assert relative_difference(read(text(*size))[0], expected) < 1e-5
    assert prepared_seconds() > before


class Counting:
    """Stands in for the compiler's program, and for the model's own code."""

    def __init__(self, wrong_from: int = 10**9):
        self.wrong_from, self.sizes = wrong_from, list[tuple[int, ...]]()

    def __call__(self, token_ids: Tensor) -> tuple[Tensor, ...]:
        self.sizes.append(tuple(token_ids.shape))
        # A program that has taken the length of its first text for a constant.
        wrong = 1.0 if token_ids.shape[1] >= self.wrong_from else 0.0
        return (torch.ones(*token_ids.shape, 4) * (token_ids[..., None] + 1 + wrong),)


def stood_in(monkeypatch: pytest.MonkeyPatch, program: Any) -> tuple[CompiledFunction, Counting]:
    plain = Counting()
    read = traced(plain)
    monkeypatch.setattr(read, "_compiled", lambda: program)
    return read, plain


def test_the_first_unlike_sizes_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    read, plain = stood_in(monkeypatch, Counting())
    for length in (4, 4, 5, 4, 6, 7):
        read(text(2, length))
    assert plain.sizes == [(2, 4), (2, 5)]
    assert len(plain.sizes) == PROOFS
    read(text(1, 4))  # for compilers a size of one is another program
    assert plain.sizes[PROOFS:] == [(1, 4)]


def test_a_program_that_says_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    read, _ = stood_in(monkeypatch, Counting(wrong_from=5))
    read(text(2, 4))
    with pytest.raises(RefusedError, match=r"^runtime='compiled': a toy differs from itself"):
        read(text(2, 5))


def test_what_cannot_be_compiled_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("g++: out of registers\nat line 5")

    read, _ = stood_in(monkeypatch, refuse)
    with pytest.raises(RefusedError) as refused:
        read(text(2, 4))
    expected = "a toy cannot be compiled here (g++: out of registers)"
    assert str(refused.value) == f"runtime='compiled': {expected}; runtime=eager runs it"


def test_eager_functions_are_themselves() -> None:
    plain = Counting()
    assert function_of("eager", plain, torch.float32, "a toy") is plain


@pytest.mark.thorough
@torch.inference_mode()
def test_functions_of_one_code_keep_their_own_programs() -> None:
    """What is not guarded would run the first one's program for all."""

    def scaled(factor: float) -> Any:
        return lambda x, y: (x * factor + y, y)

    doubled, tripled = (traced(scaled(factor), guarded=False) for factor in (2.0, 3.0))
    for rows in (2, 3, 1, 5, 4):
        x, y = torch.randn(rows, 4), torch.randn(rows, 4)
        assert torch.allclose(doubled(x, y)[0], 2 * x + y)
        assert torch.allclose(tripled(x, y)[0], 3 * x + y)

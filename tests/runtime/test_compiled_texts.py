"""Compiled texts: one program for all lengths, the same states as eagerly, or a refusal."""

from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.runtime.agreement import relative_difference
from specdec.runtime.choice import texts_of
from specdec.runtime.compiled_texts import CompiledTexts
from specdec.runtime.preparation import prepared_seconds
from specdec.runtime.proven import PROOFS, RefusedError
from tests.support.families import WINDOW, tiny_model

TYPICAL = ("llama", "gpt2", "gemma3_text")  # no rotations; windows in every second layer
SIZES = ((2, 7), (3, 5), (2, WINDOW + 9), (1, 6), (1, 12), (4, 3))


def traced(model: Any) -> CompiledTexts:
    """Let the compiler read the program, and torch run what it made of it: no C++ is waited for."""
    return CompiledTexts(model, "compiled", backend="aot_eager")


def text(rows: int, length: int) -> Tensor:
    return torch.arange(rows * length).view(rows, length) % 50


@pytest.mark.whole
@pytest.mark.thorough
@pytest.mark.parametrize("family", TYPICAL)
@torch.no_grad()
def test_all_sizes_are_read_as_eagerly(family: str) -> None:
    model = tiny_model(family)
    read, before = traced(model), prepared_seconds()
    for size in SIZES:
        expected = model.base_model(input_ids=text(*size), use_cache=False).last_hidden_state
        assert relative_difference(read(text(*size)), expected) < 1e-5
    assert prepared_seconds() > before


class Counting:
    """Stands in for the compiler's program, and for the model's own code."""

    def __init__(self, wrong_from: int = 10**9):
        self.wrong_from, self.sizes = wrong_from, list[tuple[int, ...]]()

    def __call__(self, token_ids: Tensor) -> Tensor:
        self.sizes.append(tuple(token_ids.shape))
        # A program that has taken the length of its first text for a constant.
        wrong = 1.0 if token_ids.shape[1] >= self.wrong_from else 0.0
        return torch.ones(*token_ids.shape, 4) * (token_ids[..., None] + 1 + wrong)


def stood_in(monkeypatch: pytest.MonkeyPatch, program: Any) -> tuple[CompiledTexts, Counting]:
    read, plain = traced(tiny_model("llama")), Counting()
    monkeypatch.setattr(read, "_program", program)
    monkeypatch.setattr(read, "_eagerly", plain)
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
    with pytest.raises(RefusedError, match=r"^runtime='compiled': llama differs from itself"):
        read(text(2, 5))


def test_what_cannot_be_compiled_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("g++: out of registers\nat line 5")

    read, _ = stood_in(monkeypatch, refuse)
    with pytest.raises(RefusedError) as refused:
        read(text(2, 4))
    expected = "texts of llama cannot be read this way (g++: out of registers)"
    assert str(refused.value) == f"runtime='compiled': {expected}; runtime=eager reads them"


def test_eager_texts_need_no_program() -> None:
    assert texts_of("eager", tiny_model("llama")) is None

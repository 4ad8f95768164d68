"""Steps by programs are the model's own steps: all families, trees, ragged rows and idle ones."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.core.tree import CandidateTree
from specdec.core.values import Layer
from specdec.lm.batch import TreeBatch, pad
from specdec.lm.check import largest_error
from specdec.lm.hf import HFCausalLM
from specdec.lm.new_cells import NewCells, Span
from specdec.runtime.program import Inputs, Wanted
from specdec.runtime.proven import ProvenSteps, RefusedError
from tests.support.families import FAMILIES, tiny_model
from tests.support.uncompiled import uncompiled_steps

pytestmark = pytest.mark.usefixtures("uncompiled", "without_gradients")

TREE = CandidateTree((3, 4, 5, 6, 7), (-1, 0, 0, 1, 2))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_trees_are_read_as_the_stock_model_reads_their_paths(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[HFCausalLM] = []

    def by_program(model: Any) -> HFCausalLM:
        ran.append(HFCausalLM(model, runtime="compiled"))
        return ran[-1]

    monkeypatch.setattr("specdec.lm.check.causal_lm", by_program)
    assert largest_error(tiny_model(family)) < 1e-4
    assert ran
    assert ran[0].runtime == "compiled"


def opened(lm: HFCausalLM, lengths: Sequence[int]) -> HFCausalLM:
    """Fill rows with text of their own."""
    lm.open(num_rows=len(lengths), capacity=32)
    texts = [[(7 * row + at) % 50 for at in range(n)] for row, n in enumerate(lengths)]
    lm.prefill(range(len(lengths)), texts)
    return lm


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma3_text"])
@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3], [0, 2], [2, 1], [3], [0, 1, 3]])
def test_rows_that_nobody_asks_for_change_nothing(family: str, rows: list[int]) -> None:
    model = tiny_model(family)
    both = [HFCausalLM(model, runtime=name) for name in ("eager", "compiled")]
    plain, by_program = (opened(lm, [5, 9, 3, 12]) for lm in both)
    trees = [TREE] * len(rows)
    layers: tuple[Layer, ...] = (0, "final")
    for _ in range(3):  # two of which are compared as they are run
        found: list[list[Tensor]] = []
        for lm in (plain, by_program):
            starts = [lm.length(row) for row in rows]
            said = lm.forward(rows, *TreeBatch.of(trees, starts, lm.device), layers=layers)
            for row, start in zip(rows, starts, strict=True):
                lm.keep(row, start, [0, 2, 4])
            after = lm.forward(rows, pad([[9]] * len(rows), lm.device))
            found.append([said.logits, said.hidden[0], said.hidden["final"], after.logits])
        for ours, theirs in zip(*found, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-3)
    # The rows beside them still hold what they held.
    every = pad([[11]] * 4, plain.device)
    ours, theirs = (lm.forward(range(4), every).logits for lm in (plain, by_program))
    assert torch.allclose(ours, theirs, atol=1e-3)
    assert [plain.length(row) for row in range(4)] == [by_program.length(row) for row in range(4)]


def test_a_row_of_several_never_runs_alone() -> None:
    assert Span.around([0], 4) == Span(range(2), [0])
    assert Span.around([3], 4) == Span(range(2, 4), [3])
    assert Span.around([0], 1) == Span(range(1), [0])
    assert Span.around([0, 3], 4) == Span(range(4), [0, 3])
    assert Span.around([0, 7], 8) is None, "three of four would be idle"


def test_idle_rows_read_behind_their_cells() -> None:
    span = Span.around([2], 3)
    assert span is not None
    filled = span.filled(NewCells([2], torch.tensor([[5, 6]])), [4, 9], last_position=20)
    assert filled.token_ids.tolist() == [[0, 0], [5, 6]]
    attend = torch.ones(1, 2, 11, dtype=torch.bool)
    positions = torch.tensor([[9, 9]])
    cells = NewCells([2], torch.tensor([[5, 6]]), positions, attend)
    filled = span.filled(cells, [4, 9], last_position=20)
    assert filled.positions is not None
    assert filled.positions.tolist() == [[4, 5], [9, 9]]
    assert filled.attend is not None
    assert filled.attend[0].sum(dim=-1).tolist() == [5, 6]
    assert filled.attend[1].all()


class Constant:
    """Programs that took the first step's logits for a constant, as a bad capture would."""

    def __init__(self, model: Any, cache_word: str):
        self._first: tuple[Tensor, ...] | None = None
        self._inner = uncompiled_steps("compiled", model, cache_word)

    def __call__(self, inputs: Inputs, wanted: Wanted) -> tuple[Tensor, ...]:
        assert self._inner is not None
        if self._first is None:
            self._first = self._inner._steps(inputs, wanted)
        return self._first


def constant_steps(name: str, model: Any, cache_word: str) -> ProvenSteps | None:
    return None if name == "eager" else ProvenSteps(Constant(model, cache_word), model, name)


def one_more(lm: HFCausalLM, token: int) -> Tensor:
    return lm.forward([0], torch.tensor([[token]])).logits


def test_a_program_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.lm.hf.steps_of", constant_steps)
    lm = opened(HFCausalLM(tiny_model("llama"), runtime="compiled"), [5])
    one_more(lm, 3)
    with pytest.raises(RefusedError, match=r"runtime='compiled': llama differs .* runtime=eager"):
        one_more(lm, 4)


def test_what_was_chosen_for_the_user_steps_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("specdec.lm.hf.steps_of", constant_steps)
    monkeypatch.setattr("specdec.lm.hf.suited", lambda model, num_tokens: ("compiled", "it pays"))
    model = tiny_model("llama")
    lm, plain = opened(HFCausalLM(model, runtime="auto"), [5]), opened(HFCausalLM(model), [5])
    lm.expect(1000)
    assert capsys.readouterr().out == "runtime=auto: llama compiled: it pays\n"
    opened(lm, [5])
    for token in (3, 4, 5):
        assert torch.allclose(one_more(lm, token), one_more(plain, token), atol=1e-5)
    assert lm.runtime == "eager"
    said = capsys.readouterr().out
    assert said.startswith("runtime=auto: eager from here on, since runtime='compiled': llama")
    assert said.count("\n") == 1


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_prompt_of_one_token_is_read(family: str) -> None:
    """Nothing was prefilled then: at first there are no buffers, and later one cell in sight."""
    model = tiny_model(family)
    lm, plain = HFCausalLM(model, runtime="compiled"), HFCausalLM(model)
    for _ in range(2):
        for each in (lm, plain):
            each.open(1, 32)
        for token in (3, 4, 5):
            assert torch.allclose(one_more(lm, token), one_more(plain, token), atol=1e-5)

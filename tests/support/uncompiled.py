"""Programs that no compiler has seen: the layout of a step is theirs, and they cost nothing."""

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from specdec.runtime.program import Inputs, Wanted
from specdec.runtime.proven import ProvenSteps
from specdec.runtime.stock_steps import StockSteps


class Uncompiled(StockSteps):
    """Run each step's program as it was written, if a compiler could have read its inputs."""

    def __call__(self, inputs: Inputs, wanted: Wanted = ()) -> tuple[Tensor, ...]:
        _require_what_compilers_need(inputs)
        return super().__call__(inputs, wanted)


def _require_what_compilers_need(inputs: Inputs) -> None:
    """Hold inputs to what a program takes for granted ever after its first step."""
    assert len(inputs.columns) > 1, "one is a size of its own"
    assert inputs.positions is not inputs.slots, "they would be one input"
    assert all(each.is_contiguous() for each in (*inputs[:4], *inputs.masks, *inputs.draws)), (
        "strides stay"
    )


def without_compiler(patch: pytest.MonkeyPatch) -> None:
    """Let models run by programs, and heads as they are."""
    patch.setattr("specdec.lm.hf.steps_of", uncompiled_steps)
    for module in ("specdec.proposer.heads", "specdec.lm.layer"):
        patch.setattr(f"{module}.function_of", lambda name, function, *how, **more: function)


def uncompiled_steps(name: str, model: PreTrainedModel, cache_word: str) -> ProvenSteps | None:
    """Stand in for `specdec.runtime.choice.steps_of`."""
    return None if name == "eager" else ProvenSteps(Uncompiled(model, cache_word), model, name)

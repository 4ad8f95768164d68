"""Programs that the compiler has read, and torch runs: no C++ is waited for."""

from functools import lru_cache
from typing import Any

import pytest
import torch

from specdec.runtime.compiled import CompiledSteps
from specdec.runtime.compiled_function import CompiledFunction
from specdec.runtime.program import Expected, Function
from specdec.runtime.proven import ProvenSteps


@lru_cache(maxsize=4)
def traced(model: Any, cache_word: str) -> ProvenSteps:
    """Let the compiler read the programs of a model, once."""
    return ProvenSteps(CompiledSteps(model, cache_word, backend="aot_eager"), model, "compiled")


def traced_function(
    name: str,
    function: Function,
    dtype: torch.dtype,
    called: str,
    guarded: bool = False,
    expected: Expected | None = None,
) -> Function:
    """Stand in for `specdec.runtime.choice.function_of`."""
    if name != "compiled":
        return function
    return CompiledFunction(function, dtype, called, guarded, "aot_eager", expected)


def without_cpp(patch: pytest.MonkeyPatch) -> None:
    """Let models and heads run by programs that the compiler has read."""
    patch.setattr("specdec.lm.hf.steps_of", traced_steps)
    for module in ("specdec.proposer.heads", "specdec.lm.layer"):
        patch.setattr(f"{module}.function_of", traced_function)


def traced_steps(name: str, model: Any, cache_word: str) -> ProvenSteps | None:
    """Stand in for `specdec.runtime.choice.steps_of`."""
    return traced(model, cache_word) if name == "compiled" else None

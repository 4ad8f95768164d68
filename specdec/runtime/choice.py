"""How the steps of a model may be run, by name."""

import os
import shutil
from functools import lru_cache

import torch
from transformers import PreTrainedModel

from specdec.core.errors import UserError, require
from specdec.runtime.proven import ProvenSteps

EAGER, COMPILED = "eager", "compiled"
RUNTIMES = (EAGER, COMPILED)
COMPILERS = ("g++", "clang++", "c++")


def require_runtime(name: object, device: torch.device) -> None:
    """Refuse what is no runtime, or none that can be had here.

    Raises:
        UserError: it is not.
    """
    expected = "one of " + ", ".join(RUNTIMES)
    require(isinstance(name, str) and name in RUNTIMES, "runtime", name, expected)
    compilers = (os.environ.get("CXX", COMPILERS[0]), *COMPILERS)
    if name == COMPILED and device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise UserError(
            f"runtime={name!r}: no C++ compiler is installed here; runtime=eager needs none"
        )


def steps_of(name: str, model: PreTrainedModel, cache_word: str) -> ProvenSteps | None:
    """Return the programs that run a model's steps; None: they are run eagerly."""
    return None if name == EAGER else _compiled(model, cache_word)


@lru_cache(maxsize=4)  # as many as there are models whose weights are kept
def _compiled(model: PreTrainedModel, cache_word: str) -> ProvenSteps:
    # Here, since a compiler takes a second to import, and most runs need none.
    from specdec.runtime.compiled import CompiledSteps

    return ProvenSteps(CompiledSteps(model, cache_word), model, COMPILED)

"""Whole texts read by a compiled program: how a frozen model's states along training data come."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.core.errors import first_line
from specdec.runtime.compiled import tracing
from specdec.runtime.preparation import preparing
from specdec.runtime.proven import PROOFS, RefusedError, require_equal


class CompiledTexts:
    """Read texts by a program; the first ones, of unlike sizes, are read eagerly as well.

    Args:
        model: whose weights stay as they are.
        name: what the runtime is called, for complaints.
        backend: of `torch.compile`.
    """

    def __init__(self, model: PreTrainedModel, name: str, backend: str = "inductor"):
        self._model = model
        self._name = name
        self._eagerly = _reading(model)
        # Unlike a step, a text takes so long that guards cost nothing.
        self._program = torch.compile(
            _reading(model), fullgraph=True, dynamic=True, backend=backend
        )
        self._seen: dict[bool, set[tuple[int, ...]]] = {}  # sizes, by whether there are rows

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Return the last hidden states: [B, T] -> [B, T, H].

        Raises:
            RefusedError: the program cannot be compiled, or says something else than the model.
        """
        seen = self._seen.setdefault(len(token_ids) > 1, set())
        size = tuple(token_ids.shape)
        if len(seen) >= PROOFS or size in seen:
            return self._program(token_ids)
        with preparing():
            found = self._tried(token_ids)
            require_equal(self._model, self._name, [found], [self._eagerly(token_ids)])
        seen.add(size)
        return found

    def _tried(self, token_ids: Tensor) -> Tensor:
        try:
            with tracing(self._model.dtype):
                return self._program(token_ids)
        except Exception as problem:  # whatever a compiler raises
            family = self._model.config.model_type
            raise RefusedError(
                f"runtime={self._name!r}: texts of {family} cannot be read this way"
                f" ({first_line(problem)}); runtime=eager reads them"
            ) from problem


def _reading(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """Return what reads texts by the model's own code: [B, T] -> [B, T, H]."""

    def read(token_ids: Tensor) -> Tensor:
        return model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state

    # The compiler keeps few programs for one code object, and there may be many models.
    own: Any = FunctionType(read.__code__.replace(), globals(), closure=read.__closure__)
    return own

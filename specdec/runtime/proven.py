"""Programs that are believed because the stock model, asked eagerly, said the same."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.core.errors import UserError, first_line
from specdec.core.on_device import on_device
from specdec.runtime.agreement import TOLERANCE, relative_difference
from specdec.runtime.preparation import preparing
from specdec.runtime.program import Inputs, Kind, Wanted

PROOFS = 2  # steps of unlike sizes that each program is compared on


class RefusedError(UserError):
    """A program cannot be had, or is not believed; the model itself is as good as before."""


class Steps(Protocol):
    """Programs that run a model's steps."""

    def __call__(self, inputs: Inputs, wanted: Wanted) -> tuple[Tensor, ...]:
        """Run a step; returns what is wanted."""
        ...


class ProvenSteps:
    """Run the steps of a model by programs; the first ones of each kind are run eagerly as well.

    A program that took a number of its first step for a constant differs at the next one, so two
    steps of unlike sizes are compared: on real texts, with the trees and batches that come.

    Args:
        steps: the programs.
        model: whose steps they are.
        name: what the runtime is called, for complaints.
    """

    def __init__(self, steps: Steps, model: PreTrainedModel, name: str):
        self._steps = steps
        self._model = model
        self._name = name
        self._seen: dict[Kind, set[tuple[int, ...]]] = {}

    def __call__(
        self,
        inputs: Inputs,
        wanted: Wanted,
        places: Sequence[int] | None,
        eagerly: Callable[[tuple[Tensor, ...]], Sequence[Tensor]],
    ) -> tuple[Tensor, ...]:
        """Run a step; returns what is wanted of some rows.

        Args:
            inputs: of the program.
            wanted: what it returns.
            places: the rows that were asked for; None: all.
            eagerly: returns the same of those rows as the stock model has it; it is given what the
                program found, since a chain goes on with what was drawn.

        Raises:
            RefusedError: the program cannot be had, or says something else than the model.
        """
        seen = self._seen.setdefault(Kind.of(inputs, wanted), set())
        size = (*inputs.token_ids.shape, len(inputs.columns))
        if len(seen) >= PROOFS or size in seen:
            return _of_rows(self._steps(inputs, wanted), places)
        with preparing():
            found = _of_rows(self._tried(inputs, wanted), places)
            expected = eagerly(found)
            family: str = self._model.config.model_type
            require_equal(self._name, family, self._model.dtype, found, expected)
        seen.add(size)
        return found

    def _tried(self, inputs: Inputs, wanted: Wanted) -> tuple[Tensor, ...]:
        try:
            return self._steps(inputs, wanted)
        except Exception as problem:  # whatever a compiler or a capture raises
            family = self._model.config.model_type
            raise RefusedError(
                f"runtime={self._name!r}: {family} cannot be run this way ({first_line(problem)});"
                " runtime=eager runs it"
            ) from problem


def require_equal(
    name: str,
    called: str,
    dtype: torch.dtype,
    found: Sequence[Tensor],
    expected: Sequence[Tensor],
) -> None:
    """Hold what a runtime makes of something against what it is eagerly.

    Raises:
        RefusedError: they differ by more than rounding explains; it says of which runtime (`name`),
            and of what (`called`).
    """
    error = max(map(relative_difference, found, expected))
    allowed = TOLERANCE[dtype]
    if error > allowed:
        raise RefusedError(
            f"runtime={name!r}: {called} differs from itself, run eagerly, by"
            f" {error:.1e} (relative; {dtype} allows {allowed:.0e}); runtime=eager runs it"
        )


def _of_rows(found: tuple[Tensor, ...], places: Sequence[int] | None) -> tuple[Tensor, ...]:
    if places is None:
        return found
    there = on_device(places, found[0].device)
    return tuple(each[there] for each in found)

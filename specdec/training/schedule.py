"""The learning rate of every step: a function of the step alone, whatever was interrupted."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, get_scheduler

from specdec.core.errors import UserError, require, require_int, require_number

# By their names in transformers; the others there follow the loss and not the step.
SCHEDULES = tuple(
    each.value for each in SchedulerType if each.value not in ("reduce_lr_on_plateau", "greedy")
)


class Schedule:
    """The schedule `name` of transformers, over `max_steps` steps with a warm-up at the beginning.

    Raises:
        UserError: the schedule does not know an option, or wants one that is missing.
    """

    def __init__(
        self,
        name: str,
        optimizer: Optimizer,
        warmup_steps: int,
        max_steps: int,
        options: Mapping[str, Any],
    ):
        try:
            found = get_scheduler(
                name,
                optimizer,
                num_warmup_steps=warmup_steps,
                num_training_steps=max_steps,
                scheduler_specific_kwargs=dict(options),
            )
        except (TypeError, ValueError) as error:
            raise UserError(
                f"lr_scheduler_type={name!r}: {error}; expected its options in"
                " lr_scheduler_kwargs={...}"
            ) from None
        assert isinstance(found, LambdaLR)
        self._rates = [float(rate) for rate in found.base_lrs]
        self._factors = found.lr_lambdas

    def apply(self, optimizer: Optimizer, step: int) -> float:
        """Give the optimizer the rates of a step, from 0; returns the first group's."""
        for group, rate, factor in zip(
            optimizer.param_groups, self._rates, self._factors, strict=True
        ):
            group["lr"] = rate * float(factor(step))
        return float(optimizer.param_groups[0]["lr"])


def require_schedule(
    name: str, warmup_steps: object, warmup_ratio: object, options: object
) -> None:
    """Refuse what no schedule is made from.

    Raises:
        UserError: an option is out of its range.
    """
    known = isinstance(name, str) and name in SCHEDULES
    require(known, "lr_scheduler_type", name, "one of " + ", ".join(SCHEDULES))
    if warmup_steps is not None:
        require_int("warmup_steps", warmup_steps, 0)
    require_number("warmup_ratio", warmup_ratio, 0.0, 1.0)
    expected = "the schedule's own options, {min_lr: 1.0e-5}"
    require(isinstance(options, Mapping), "lr_scheduler_kwargs", options, expected)

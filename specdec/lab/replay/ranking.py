"""What predicted seconds say: the best configuration of each proposer, and the frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from specdec.lab.replay.arms import ReplayArm
from specdec.metrics import Estimate, Tally, block_efficiency, speedup, step_cost


@dataclass(frozen=True)
class Choice:
    """A configuration with what it is predicted to bring and to cost."""

    name: str
    proposer: str
    tau: float
    step_cost: float  # seconds of a step over those of proposer=none
    speedup: Estimate  # over proposer=none


def choices(arms: Mapping[str, ReplayArm], tallies: Mapping[str, Tally]) -> list[Choice]:
    """Return the configurations whose seconds are predicted, and can be true, the fastest first."""
    found: list[Choice] = []
    for name, tally in tallies.items():
        tau, cost = block_efficiency(tally).value, step_cost(tally).value
        if cost and tau:
            found.append(Choice(name, arms[name].proposer, tau, cost, speedup(tally)))
    return sorted(found, key=lambda choice: -(choice.speedup.value or 0))


def best_of_each(found: Sequence[Choice]) -> list[Choice]:
    """Return the fastest configuration of each proposer."""
    best: dict[str, Choice] = {}
    for choice in found:
        best.setdefault(choice.proposer, choice)
    return list(best.values())


def frontier(found: Sequence[Choice]) -> list[Choice]:
    """Return those than which none has both cheaper steps and more tokens in them, cheapest first.

    What a machine makes of tau depends on its costs; whatever they are, the best is likely here.
    """
    kept: list[Choice] = []
    for choice in sorted(found, key=lambda choice: (choice.step_cost, -choice.tau)):
        if not kept or choice.tau > kept[-1].tau:
            kept.append(choice)
    return kept


def show(found: Sequence[Choice]) -> None:
    """Print both."""
    if not found:
        return
    print_choices("predicted: the best configuration of each proposer", best_of_each(found))
    print_choices("predicted: the frontier of tau and the cost of a step", frontier(found))


def print_choices(title: str, shown: Sequence[Choice]) -> None:
    """Print one table, a configuration a line."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("configuration", overflow="fold")
    for name in ("tau", "step cost", "speedup"):
        table.add_column(name, justify="right")
    for choice in shown:
        faster = choice.speedup
        between = "" if faster.low is None else f" [{faster.low:.2f}, {faster.high:.2f}]"
        numbers = f"{choice.tau:.3f}", f"{choice.step_cost:.3f}", f"{faster.value:.2f}{between}"
        table.add_row(choice.name, *numbers)
    Console().print(table)

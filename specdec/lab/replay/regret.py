"""What arms that choose their own depths lose against the best fixed depth in hindsight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specdec.core.plug_ins import plug_in_name
from specdec.lab.replay.arms import ReplayArm, rule_of
from specdec.lab.spec import ArmSpec
from specdec.metrics import Estimate, Tally, regret, tokens_per_second
from specdec.results.options import proposes_nothing


@dataclass(frozen=True)
class Regret:
    """How much longer an arm takes than the best fixed one, which was known only afterwards."""

    best: str  # the name of that arm
    estimate: Estimate  # of seconds per token over those of the best, less 1

    def to_row(self) -> dict[str, object]:
        """Return what a summary has of it."""
        return {"regret": self.estimate.to_row(), "regret_to": self.best}


def regrets(
    specs: Mapping[str, ArmSpec], arms: Mapping[str, ReplayArm], tallies: Mapping[str, Tally]
) -> dict[str, Regret]:
    """Hold each paced arm to the fastest arm of the same draft, kind of tree and rule, or to none.

    Which fixed arms there are decides: give `grid.gamma` all depths that matter.
    """
    fixed = {name: arm for name, arm in arms.items() if arm.pace is None}
    found: dict[str, Regret] = {}
    for name in [name for name, arm in arms.items() if arm.pace is not None]:
        rivals = [
            other
            for other in fixed
            if proposes_nothing(specs[other].options)
            or _family(specs[other], arms[other]) == _family(specs[name], arms[name])
        ]
        speeds = {other: tokens_per_second(tallies[other]).value or 0.0 for other in rivals}
        if any(speeds.values()):
            best = max(speeds, key=lambda other: speeds[other])
            found[name] = Regret(best, regret(tallies[name], tallies[best]))
    return found


def _family(spec: ArmSpec, arm: ReplayArm) -> tuple[str, str, str]:
    return arm.draft.known_by, rule_of(spec), plug_in_name(spec.tree.target)


def show(found: Mapping[str, Regret]) -> None:
    """Print an arm a line."""
    for name, each in found.items():
        number = each.estimate
        between = "" if number.low is None else f" [{number.low:+.1%}, {number.high:+.1%}]"
        print(f"regret of {name}: {number.value:+.1%}{between} against {each.best}")

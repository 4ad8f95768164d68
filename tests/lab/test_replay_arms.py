"""Which arms are replayed: those of which it is known how candidates are chosen."""

import pytest

from specdec.command.compose import compose_decode
from specdec.command.options import arm_spec
from specdec.core.errors import Unfit
from specdec.core.values import Draw
from specdec.lab.replay.arms import ReplayArm
from specdec.proposer.ngram import NGram


class SaysSo(NGram):
    """A proposer of somebody's own that inherits how it draws."""


class InItsConstructor:
    """One that samples, and says so only once it is built."""

    max_depth = 2

    def __init__(self) -> None:
        self.draw = Draw.SINGLE


class AsProperty:
    """One that says so only when an object is asked."""

    @property
    def draw(self) -> Draw:
        """How its candidates are chosen."""
        return Draw.SINGLE


def replay_arm(kind: type) -> ReplayArm:
    target = f"{kind.__module__}.{kind.__qualname__}"
    return ReplayArm.of(arm_spec(compose_decode(["proposer=none", f"proposer._target_={target}"])))


def test_a_class_says_how_it_draws() -> None:
    assert replay_arm(SaysSo).closed is None


@pytest.mark.parametrize("kind", [InItsConstructor, AsProperty])
def test_candidates_that_may_be_sampled_are_no_point_masses(kind: type) -> None:
    with pytest.raises(Unfit, match=rf"proposer=.*{kind.__name__}: its class has no `draw`.*deco"):
        replay_arm(kind)

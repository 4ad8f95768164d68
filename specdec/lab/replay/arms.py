"""Which arms can be replayed, and as what: in closed form, or by decoding on the recorded texts."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.core.errors import Unfit
from specdec.core.plug_ins import plug_in_name
from specdec.lab.spec import ArmSpec
from specdec.replay.arm import ClosedArm
from specdec.replay.redraft import require_jumps
from specdec.tree.fixed import FixedTree


@dataclass(frozen=True)
class ReplayArm:
    """An arm that texts decide on; `closed` is how, in closed form, if there is one."""

    spec: ArmSpec
    closed: ClosedArm | None

    @classmethod
    def of(cls, spec: ArmSpec) -> ReplayArm:
        """Say how an arm is replayed.

        Raises:
            Unfit: neither a closed form is known, nor does the text decide what is accepted.
        """
        if spec.allow_lossy:
            raise Unfit(
                "verification.allow_lossy=true: texts of lossy rules are others; decode them"
            )
        closed = closed_arm(spec)
        if closed is None:
            require_jumps(spec.rule.build(), spec.proposer.draw(spec.tree.build()))
        return cls(spec, closed)


def rule_of(spec: ArmSpec) -> str:
    """Return the name of an arm's rule if it is one of ours; of others the class."""
    return plug_in_name(spec.rule.target)


def closed_arm(spec: ArmSpec) -> ClosedArm | None:
    """Return the arm as a closed form, or None where there is none for it."""
    proposer, tree = spec.proposer, spec.tree.build()
    # What somebody else's proposer makes of a model is not known.
    drafts = proposer.has_heads or proposer.draft_model is not None
    if not (proposer.is_ours and drafts and isinstance(tree, FixedTree)):
        return None
    try:
        return ClosedArm(tree, spec.rule.build(), proposer.get("temperature"))
    except Unfit:
        return None

"""Which arms can be replayed, and as what: in closed form, or by decoding on the recorded texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from specdec.core.errors import Unfit
from specdec.core.plug_ins import is_ours, plug_in_name
from specdec.core.protocols import Proposer, TreePolicy, VerificationRule
from specdec.core.values import Draw
from specdec.lab.identity import draft_of
from specdec.lab.spec import ArmSpec
from specdec.lm.hf import HFCausalLM
from specdec.proposer.cascade import Cascade
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.heads import HeadsProposer
from specdec.replaying.arm import ClosedArm
from specdec.replaying.costs import ProposerKey
from specdec.replaying.redraft import require_jumps
from specdec.tree.fixed import FixedTree


@dataclass(frozen=True)
class ReplayArm:
    """An arm that texts decide on.

    Args:
        proposer: what its kind of proposer is called.
        make: builds it for the verifier that wrote the texts, when it is needed.
        tree: that it grows; None: it has a way of its own.
        draft: what its candidates come from; arms of one are replayed together.
        closed: how it is replayed in closed form; None: there is none, it is decoded on the texts.
    """

    proposer: str
    make: Callable[[HFCausalLM], Proposer]
    tree: TreePolicy | None
    draft: ProposerKey
    closed: ClosedArm | None

    @classmethod
    def of(cls, spec: ArmSpec) -> ReplayArm:
        """Say how an arm is replayed, before anything of it is loaded.

        Raises:
            Unfit: neither a closed form is known, nor does the text decide what is accepted.
        """
        if spec.allow_lossy:
            raise Unfit(
                "verification.allow_lossy=true: texts of lossy rules are others; decode them"
            )
        proposer, tree, rule = spec.proposer, spec.tree.build(), spec.rule.build()
        if not proposer.says_draw:  # it may sample
            raise Unfit(
                f"proposer={plug_in_name(proposer.target)}: its class has no `draw`, so how"
                " candidates are chosen is not known before it is built; decode it"
            )
        # What somebody else's proposer makes of a model is not known.
        drafts = proposer.has_heads or proposer.draft_model is not None
        closed = None
        if proposer.is_ours and drafts:
            closed = _closed(tree, rule, proposer.temperature)
        if closed is None:
            require_jumps(rule, proposer.draw(tree))
        grown = tree if proposer.grows_trees else None
        kind = plug_in_name(proposer.target)
        return cls(kind, proposer.build_for, grown, draft_of(proposer), closed)

    @classmethod
    def of_parts(cls, proposer: Proposer, rule: VerificationRule) -> ReplayArm:
        """Say how a proposer and a rule are replayed.

        Raises:
            Unfit: neither a closed form is known, nor does the text decide what is accepted.
        """
        _require_lossless(rule, proposer.draw)
        kind = f"{type(proposer).__module__}.{type(proposer).__qualname__}"
        tree, closed, source = None, None, id(proposer)
        if isinstance(proposer, DraftModel | Cascade | HeadsProposer):
            tree = proposer.tree
            if is_ours(kind):
                closed = _closed(tree, rule, proposer.temperature)
                heads = isinstance(proposer, HeadsProposer)
                source = id(proposer.heads if heads else proposer.model)
        if closed is None:
            require_jumps(rule, proposer.draw)
        name = plug_in_name(kind)
        return cls(name, lambda verifier: proposer, tree, ProposerKey(name, str(source)), closed)


def rule_of(spec: ArmSpec) -> str:
    """Return the name of an arm's rule if it is one of ours; of others the class."""
    return plug_in_name(spec.rule.target)


def _closed(
    tree: TreePolicy, rule: VerificationRule, temperature: float | None
) -> ClosedArm | None:
    """Return an arm as a closed form, or None where there is none for it."""
    if not isinstance(tree, FixedTree):
        return None
    try:
        return ClosedArm(tree, rule, temperature)
    except Unfit:
        return None


def _require_lossless(rule: VerificationRule, draw: Draw | None) -> None:
    if draw is not None and draw not in rule.lossless_for:
        raise Unfit(
            f"{type(rule).__name__}: not lossless for {draw.value} candidates, so that its texts"
            " are others; decode them"
        )

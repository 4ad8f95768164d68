"""Which arms can be replayed, and as what: in closed form, or by decoding on the recorded texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from specdec.core.errors import Unfit
from specdec.core.plug_ins import is_ours, plug_in_name
from specdec.core.protocols import Pace, Proposer, TreePolicy, VerificationRule
from specdec.core.values import CandidateSource, Draws, each_draw
from specdec.lab.arm import build_pace
from specdec.lab.identity import draft_of
from specdec.lab.spec import ArmSpec, is_fixed
from specdec.lm.hf import HFCausalLM
from specdec.lm.translation import translation_of
from specdec.proposer.cascade import Cascade
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.early_exit import EarlyExit
from specdec.proposer.feature_proposer import FeatureProposer
from specdec.proposer.self_speculation import SelfSpeculation
from specdec.replaying.arm import ClosedArm
from specdec.replaying.costs import ProposerKey
from specdec.replaying.redraft import require_jumps
from specdec.tree.chain import Chain
from specdec.tree.filtered import Filtered
from specdec.tree.fixed import FixedTree

OF_CELLS = (
    "drafts from the verifier's own cells in layers behind those it skips, which no recording has;"
    " decode it"
)


@dataclass(frozen=True)
class ReplayArm:
    """An arm that texts decide on.

    Args:
        proposer: what its kind of proposer is called.
        make: builds it for the verifier that wrote the texts, when it is needed.
        tree: that it grows; None: it has a way of its own.
        draft: what its candidates come from; arms of one are replayed together.
        closed: how it is replayed in closed form; None: there is none, it is decoded on the texts.
        pace: builds what chooses the depth of each step; None: all are as deep as the tree.
    """

    proposer: str
    make: Callable[[HFCausalLM], Proposer]
    tree: TreePolicy | None
    draft: ProposerKey
    closed: ClosedArm | None
    pace: Callable[[], Pace] | None = None

    @classmethod
    def of(cls, spec: ArmSpec, has_costs: bool = True) -> ReplayArm:
        """Say how an arm is replayed, before anything of it is loaded.

        Where depths choose themselves, what steps cost decides; without costs nobody knows that.

        Raises:
            Unfit: neither a closed form is known, nor does the text decide what is accepted.
        """
        if spec.allow_lossy:
            raise Unfit(
                "verification.allow_lossy=true: texts of lossy rules are others; decode them"
            )
        if spec.online is not None:
            raise Unfit(
                f"online={spec.online.name}: replay reads all texts with the same weights, and this"
                " proposer's change; decode it"
            )
        proposer, tree, rule = spec.proposer, spec.tree.build(), spec.rule.build()
        if not proposer.says_draw:  # it may sample
            raise Unfit(
                f"proposer={plug_in_name(proposer.target)}: its class has no `draw`, so how"
                " candidates are chosen is not known before it is built; decode it"
            )
        # What somebody else's proposer makes of a model is not known.
        drafts = proposer.grows_trees and not proposer.parts
        closed = None
        # In other tokens the draft's distribution depends on where a step begins, not on the text
        # alone.
        if proposer.is_ours and drafts and proposer.reads_same_tokens:
            closed = _closed(tree, rule, proposer.temperature)
        if closed is None:
            require_jumps(rule, proposer.draw(tree))
        if proposer.has_layers and proposer.kind is not EarlyExit:
            raise Unfit(f"proposer={proposer.name}: {OF_CELLS}")
        grown = tree if proposer.grows_trees and not proposer.parts else None
        kind = plug_in_name(proposer.target)

        def make(verifier: HFCausalLM) -> Proposer:
            return _by_itself(proposer.build_for(verifier))

        pace = _pace_of(spec, tree, closed, has_costs)
        return cls(kind, make, grown, draft_of(proposer), closed, pace)

    @classmethod
    def of_parts(cls, proposer: Proposer, rule: VerificationRule) -> ReplayArm:
        """Say how a proposer and a rule are replayed.

        Raises:
            Unfit: neither a closed form is known, nor does the text decide what is accepted.
        """
        _require_lossless(rule, proposer.draw)
        if isinstance(proposer, SelfSpeculation) and not isinstance(proposer, EarlyExit):
            raise Unfit(f"{type(proposer).__name__}: {OF_CELLS}")
        kind = f"{type(proposer).__module__}.{type(proposer).__qualname__}"
        tree, closed, source = None, None, id(proposer)
        proposer = _by_itself(proposer)
        if isinstance(proposer, DraftModel | Cascade | FeatureProposer):
            tree = proposer.tree
            if is_ours(kind) and not _translates(proposer):
                closed = _closed(tree, rule, proposer.temperature)
                heads = isinstance(proposer, FeatureProposer)
                source = id(proposer.heads if heads else proposer.model)
        if closed is None:
            require_jumps(rule, proposer.draw)
        name = plug_in_name(kind)
        return cls(name, lambda verifier: proposer, tree, ProposerKey(name, str(source)), closed)


def _by_itself(proposer: Proposer) -> Proposer:
    """Return what drafts the same where no verifier reads: a model with a cache of its own."""
    return proposer.alone() if isinstance(proposer, EarlyExit) else proposer


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


def _translates(proposer: Proposer) -> bool:
    return isinstance(proposer, DraftModel) and translation_of(proposer.model) is not None


def _pace_of(
    spec: ArmSpec, tree: TreePolicy, closed: ClosedArm | None, has_costs: bool
) -> Callable[[], Pace] | None:
    """Return what builds the pace of an arm, if steps differ in depth; see `replaying.paced`.

    Raises:
        Unfit: its steps cannot be played along texts.
    """
    if is_fixed(spec):
        return None
    name, proposer = f"pace={spec.pace.name}", spec.proposer
    if not has_costs:
        raise Unfit(f"{name}: what steps cost decides on the next ones; expected costs=FILE")
    if not isinstance(tree, Chain) or isinstance(tree, Filtered) or tree.may_stop:
        raise Unfit(f"{name}: replay knows chains that end nowhere early; expected tree=chain")
    if spec.pace.get("by_price"):
        raise Unfit(f"{name}: with by_price=true drafts decide on their length; decode them")
    if closed is None and proposer.source is not CandidateSource.TEXT:
        raise Unfit(f"{name}: no closed form is known for these candidates; decode them")
    return partial(build_pace, spec)


def _require_lossless(rule: VerificationRule, draws: Draws) -> None:
    for draw in each_draw(draws):
        if draw is None or draw in rule.lossless_for:
            continue
        raise Unfit(
            f"{type(rule).__name__}: not lossless for {draw.value} candidates, so that its texts"
            " are others; decode them"
        )

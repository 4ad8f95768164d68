"""What a rule of a user's own tells replay, and what is made of a rule that tells less."""

import pytest
import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm, TextNodes
from specdec.core.errors import Unfit, UserError
from specdec.core.members import require_members
from specdec.core.protocols import VerificationRule
from specdec.core.randomness import Stream
from specdec.core.sampling import Sampling
from specdec.core.values import Draw, Proposal, Verdict
from specdec.decoding.stopping import Stopping
from specdec.metrics import Tally
from specdec.recording.texts import Text
from specdec.replaying.arm import ClosedArm
from specdec.replaying.closed_form import replay
from specdec.replaying.draft_distributions import ModelDistributions
from specdec.replaying.expected_steps import tally
from specdec.replaying.redraft import require_jumps
from specdec.tree.chain import Chain
from specdec.tree.filtered import Filtered
from specdec.tree.fixed import FixedTree
from specdec.verification.match import Match
from specdec.verification.rejection import Rejection
from tests.support.toy import full_context, mixture, table_lm

VERIFIER = full_context(1, 0.7)
DRAFT = mixture(VERIFIER, full_context(2, 0.7), 0.4)


def accepted(nodes: TextNodes) -> Tensor:
    """Return min(1, q/p) of the text's token, and nothing else."""
    ratio = nodes.of_text(nodes.q) / nodes.log_p.exp()
    return ratio.clamp(max=1)[:, None]


class Plain:
    """Token-level rejection that somebody wrote on their own, `shares` being all it tells."""

    lossless_for = frozenset({Draw.SINGLE, Draw.FILTERED})
    defined_for = lossless_for
    needs_q = True
    decided_by_text = frozenset[Draw]()

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        """Decide on one tree."""
        return Rejection().verify(proposal, verifier_probs, stream)

    def closed_form(self, draw: Draw) -> ClosedForm | None:
        """Tell of what is drawn."""
        return ClosedForm(accepted, needs_p=False) if draw in self.lossless_for else None


class Renamed(Rejection):
    """Rejection, as it is."""


class Overridden(Rejection):
    """Another decision, of which nothing was said."""

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        """Follow the verifier's own draw."""
        return Match().verify(proposal, verifier_probs, stream)


class InItsConstructor(Plain):
    """A rule that tells what it does as attributes, beside a decision of its own."""

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        """Decide on one tree."""
        return Match().verify(proposal, verifier_probs, stream)

    def __init__(self) -> None:
        self.decided_by_text = frozenset({Draw.DETERMINISTIC})


class Half:
    """A rule that tells one thing of two."""

    lossless_for = frozenset({Draw.SINGLE})
    defined_for = lossless_for
    needs_q = True
    verify = Plain.verify
    closed_form = Plain.closed_form


def replayed(rule: VerificationRule, tree: FixedTree, stopping: Stopping) -> Tally:
    tokens = [(0, 1, 2, 1), (1, 1, 0, 2), (2, 0, 0, 1)]
    texts = [
        Text(f"{row}", "", 0, (0,), ids, tuple(_log_p(ids)), "length", 4)
        for row, ids in enumerate(tokens)
    ]
    arm = ClosedArm(tree, rule)
    distributions, verifier = ModelDistributions(table_lm(DRAFT)), table_lm(VERIFIER)
    found = replay(texts, distributions, {"": arm}, Sampling(), verifier, 3, stopping=stopping)
    return tally(found[""], arm.num_drafted)


def _log_p(tokens: tuple[int, ...]) -> list[float]:
    return [
        float(VERIFIER((0, *tokens[:place]))[token].log()) for place, token in enumerate(tokens)
    ]


@pytest.mark.parametrize(
    ("tree", "stopping", "missing"),
    [
        (Chain(2), Stopping(4), set[str]()),
        (Chain(2), Stopping(4, frozenset({1})), {"num_drafted"}),
        (
            Filtered(2, min_prob=0.3),
            Stopping(4),
            {"num_drafts", "at_risk.1", "at_risk.2"},
        ),
    ],
    ids=["chain", "end token", "filtered"],
)
def test_shares_alone_give_acceptance(
    tree: FixedTree, stopping: Stopping, missing: set[str]
) -> None:
    """And of the other counters those are left out that nothing tells."""
    ours, known = replayed(Plain(), tree, stopping), replayed(Rejection(), tree, stopping)
    assert known.columns.keys() - ours.columns.keys() == missing
    for name, column in ours.columns.items():
        assert torch.allclose(torch.tensor(column), torch.tensor(known.columns[name])), name


def test_a_subclass_that_decides_as_before_is_known() -> None:
    assert ClosedArm(Chain(2), Renamed()).form == ClosedArm(Chain(2), Rejection()).form
    require_jumps(Renamed(), Draw.DETERMINISTIC)


def test_a_subclass_that_decides_otherwise_is_not_taken_for_its_base() -> None:
    with pytest.raises(Unfit, match=r"verification=tests\..*Overridden: no closed form is known"):
        ClosedArm(Chain(2), Overridden())
    with pytest.raises(Unfit, match="cannot be replayed; decode them"):
        require_jumps(Overridden(), Draw.DETERMINISTIC)


def test_attributes_of_an_object_are_its_own() -> None:
    require_jumps(InItsConstructor(), Draw.DETERMINISTIC)
    with pytest.raises(Unfit):
        ClosedArm(Chain(2), InItsConstructor())  # its class says nothing of this decision


def test_half_of_what_replay_needs_is_refused() -> None:
    with pytest.raises(UserError, match="no `decided_by_text`; expected a frozenset of Draw"):
        require_members(Half(), "verification rule")


def test_p_is_withheld_from_a_form_that_does_not_say_that_it_reads_it() -> None:
    nodes = TextNodes(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64), torch.zeros(1), 1)
    with pytest.raises(AssertionError, match="needs_p"):
        _ = nodes.p

"""What a rule from outside tells replay is enumerated before it is believed; ours pays nothing."""

from collections.abc import Callable

import pytest
from torch import Tensor

from specdec.core.closed_form import ClosedForm, Passes, TextNodes
from specdec.core.errors import UserError
from specdec.core.outcome import Outcome
from specdec.core.protocols import VerificationRule
from specdec.core.randomness import Stream
from specdec.core.values import Draw, Proposal, Verdict
from specdec.proof.replayable import flaw_of_form, flaw_of_text
from specdec.replaying.arm import ClosedArm, closed_form_of, is_decided_by_text
from specdec.replaying.redraft import require_jumps
from specdec.tree.chain import Chain
from specdec.tree.filtered import Filtered
from specdec.verification.match import Match
from specdec.verification.rejection import Rejection
from tests.support.rule_cases import rules_by_name

RULES = rules_by_name()
CHAINS = frozenset({Draw.SINGLE, Draw.FILTERED})


class Described(Rejection):
    """Token-level rejection, of which somebody says something on their own."""

    def __init__(self, shares: Callable[[TextNodes], Tensor]):
        self._shares = shares

    def closed_form(self, draw: Draw) -> ClosedForm | None:
        """Tell of chains."""
        passes = Passes(self._shares)
        return ClosedForm(self._shares, needs_p=False, passes=passes) if draw in CHAINS else None


class Sure(Rejection):
    """The same, called one that the text decides."""

    decided_by_text = frozenset({Draw.SINGLE})


class Tardy(Match):
    """A rule that accepts one candidate of a path at most, whatever the text goes on with."""

    decided_by_text = frozenset({Draw.SINGLE})

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        """Decide on one tree."""
        verdict = super().verify(proposal, verifier_probs, stream)
        if len(verdict.path) < 2:
            return verdict
        first, second = verdict.path[:2]
        return Verdict((first,), proposal.tree.token_ids[second], Outcome.RECOVERED)


def right(nodes: TextNodes) -> Tensor:
    """Return min(1, q/p) of the text's token."""
    return (nodes.of_text(nodes.q) / nodes.log_p.exp()).clamp(max=1)[:, None]


def modest(nodes: TextNodes) -> Tensor:
    """Forget that a candidate is always accepted of which q has too little."""
    return 0.99 * right(nodes)


def of_another_rule(nodes: TextNodes) -> Tensor:
    """Return q, which is what `Match` accepts."""
    return nodes.of_text(nodes.q)[:, None]


def undefined(nodes: TextNodes) -> Tensor:
    """Divide by what may be 0."""
    return right(nodes) * (nodes.q.min(dim=1).values / nodes.q.min(dim=1).values)[:, None]


def greedy(nodes: TextNodes) -> Tensor:
    """Read p without having said so."""
    return nodes.p[:, :1]


CLAIMS = [(name, draw) for name in RULES for draw in Draw]


@pytest.mark.parametrize(("name", "draw"), CLAIMS, ids=str)
def test_what_is_right_passes(name: str, draw: Draw) -> None:
    rule = RULES[name]
    if closed_form_of(rule, draw) is not None:
        assert flaw_of_form(rule, draw) is None
    if is_decided_by_text(rule, draw):
        assert flaw_of_text(rule, draw) is None


@pytest.mark.parametrize("shares", [modest, of_another_rule, undefined, greedy])
def test_a_wrong_closed_form_is_refused_in_a_line(shares: Callable[[TextNodes], Tensor]) -> None:
    with pytest.raises(
        UserError, match=r"Described: its closed_form is wrong: single cand.*"
    ) as raised:
        ClosedArm(Chain(2), Described(shares))
    assert "\n" not in str(raised.value)


def test_a_right_one_is_believed_without_what_is_not_enumerated() -> None:
    form = ClosedArm(Filtered(2, min_prob=0.3), Described(right)).form
    assert form.shares is right
    assert form.passes is None


@pytest.mark.parametrize("kind", [Sure, Tardy])
def test_what_the_text_does_not_decide_is_refused(kind: Callable[[], VerificationRule]) -> None:
    with pytest.raises(UserError, match="its decided_by_text is wrong: single candidates, a chain"):
        require_jumps(kind(), Draw.SINGLE)


def test_ours_are_believed_without_enumerating_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(rule: VerificationRule, draw: Draw | None) -> str | None:
        raise AssertionError("a rule of ours is proven by tests")

    for name in ("flaw_of_form", "flaw_of_text"):
        monkeypatch.setattr(f"specdec.replaying.arm.{name}", refuse)
    ClosedArm(Chain(2), Rejection())
    require_jumps(Match(), Draw.SINGLE)

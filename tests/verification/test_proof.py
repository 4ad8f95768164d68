"""What a rule says of itself is enumerated: every known bug is found, every right rule passes."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec as sd
from specdec.core.errors import UserError
from specdec.core.outcome import Outcome
from specdec.core.randomness import Stream
from specdec.core.values import Draw, Proposal, Verdict
from specdec.proof.lossless import finding, prove_lossless
from specdec.verification.rejection import Rejection
from tests.support.mutating import rewritten
from tests.support.toy import full_context, table_lm
from tests.verification.test_mutations import BIASING, Mutation

TARGET = full_context(3)
CLAIMS: list[tuple[Any, Draw]] = [
    (rule, draw)
    for rule in (sd.Rejection(), sd.Match(), sd.Block(), sd.Traversal(), sd.KSeq(), sd.TopPlusOne())
    for draw in sorted(rule.lossless_for, key=lambda each: each.value)
]


class Chains:
    """Speculative sampling for chains, as somebody outside of the package may write it."""

    lossless_for = frozenset({Draw.SINGLE})
    defined_for = lossless_for
    needs_q = True

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        """Decide on one chain."""
        tree, accepted = proposal.tree, 0
        for node in range(1, tree.num_draft_tokens + 1):
            assert proposal.draft_probs is not None
            p, q = verifier_probs[node - 1], proposal.draft_probs[node - 1]
            token = tree.token_ids[node]
            if not self.accepts(stream, float(p[token] / q[token])):
                path = tuple(range(1, accepted + 1))
                return Verdict(path, self.corrected(p, q, stream), Outcome.RECOVERED, **self.said())
            accepted = node
        path = tuple(range(1, accepted + 1))
        return Verdict(path, stream.choose(verifier_probs[accepted]), Outcome.BONUS, **self.said())

    def accepts(self, stream: Stream, odds: float) -> bool:
        """Decide on one token."""
        return stream.accept(odds)

    def corrected(self, p: Tensor, q: Tensor, stream: Stream) -> int:
        """Draw what stands in place of a refused token."""
        rest = (p - q).clamp(min=0)
        return stream.choose(rest if rest.sum() > 0 else p)

    def said(self) -> dict[str, Any]:
        """Return what else the verdict says: here that it does not know E[A]."""
        return {"expected_accepted": None}


class FromP(Chains):
    """The classic bug."""

    def corrected(self, p: Tensor, q: Tensor, stream: Stream) -> int:
        return stream.choose(p)


class OwnNoise(Chains):
    """Right, but for noise that nobody can enumerate, or repeat."""

    def accepts(self, stream: Stream, odds: float) -> bool:
        return float(torch.rand(())) < odds


class SeededNoise(Chains):
    """The same noise in every step."""

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        noise = random.Random(0)
        token = noise.choices(range(len(verifier_probs[0])), verifier_probs[0].tolist())[0]
        ends = Outcome.RECOVERED if proposal.tree.num_draft_tokens else Outcome.BONUS
        return Verdict((), token, ends, **self.said())


class Raises(Chains):
    """Wants something that a stream does not have."""

    def accepts(self, stream: Any, odds: float) -> bool:
        return stream.gumbel() < odds


class Miscounts(Chains):
    """Right, and says that half a token is expected, whatever the candidates are."""

    def said(self) -> dict[str, Any]:
        return {"expected_accepted": 0.5}


class Elsewhere(Chains):
    """Walks down the wrong nodes."""

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        return replace(super().verify(proposal, verifier_probs, stream), path=(2,))


class Lossy(FromP):
    """Says that it is not lossless."""

    lossless_for = frozenset[Draw]()
    defined_for = frozenset({Draw.SINGLE})


WRONG: list[tuple[type[Chains], str]] = [
    (FromP, r"single candidates, a chain of 1 .*off by 0\.\d+ \(total variation\)"),
    (OwnNoise, "does not ask the stream for all that it decides; decide with stream.accept"),
    (SeededNoise, "does not ask the stream for all that it decides"),
    (Raises, "AttributeError: .*gumbel.*decide with stream.accept"),
    (Elsewhere, "no path from the root"),
]


def name_of(value: object) -> str:
    return value.value if isinstance(value, Draw) else type(value).__name__


@pytest.mark.parametrize(("rule", "draw"), CLAIMS, ids=name_of)
def test_the_rules_of_the_package_are_what_they_say(rule: Any, draw: Draw) -> None:
    assert finding(rule, draw).lossy is None
    assert finding(rule, draw).miscounts is None


@pytest.mark.parametrize("mutation", BIASING, ids=str)
def test_every_known_bug_is_found(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation.plant(monkeypatch)
    assert mutation.case is not None
    fresh = type("Fresh", (type(mutation.case.rule),), {})()  # else it would be remembered
    assert finding(fresh, mutation.case.draw).lossy is not None


@pytest.mark.parametrize(("kind", "reason"), WRONG, ids=str)
def test_a_wrong_rule_from_outside_is_refused_in_one_line(kind: type[Chains], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        prove_lossless(kind())
    assert "\n" not in str(caught.value)
    assert f"test_proof.{kind.__name__}: " in str(caught.value)


def test_a_right_rule_from_outside_passes() -> None:
    prove_lossless(Chains())
    assert decoder(Chains()).lossless


def test_a_rule_that_miscounts_is_refused() -> None:
    with pytest.raises(UserError, match=r"expected_accepted 0\.500 and accepts 0\.\d+ on average"):
        decoder(Miscounts())
    with pytest.raises(UserError, match=r"judges=mine: .*expected_accepted 0\.500"):
        decoder(sd.Rejection(), judges={"mine": Miscounts()})


@pytest.mark.parametrize("kind", [FromP, OwnNoise])
def test_the_decoder_believes_no_rule(kind: type[Chains]) -> None:
    with pytest.raises(UserError, match=f"{kind.__name__}: not lossless, though it says so"):
        decoder(kind())
    assert not decoder(kind(), allow_lossy=True).lossless
    assert decoder(sd.Rejection(), judges={"mine": kind()}).lossless  # judges write no text


def test_a_rule_that_is_lossy_by_its_own_word_needs_no_proof() -> None:
    with pytest.raises(UserError, match="Lossy: not lossless for single candidates"):
        decoder(Lossy())
    assert not decoder(Lossy(), allow_lossy=True).lossless


def test_without_candidates_the_rule_is_proven_too() -> None:
    class Uniform(Chains):
        def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
            token = stream.choose(torch.ones_like(verifier_probs[0]))
            return Verdict((), token, Outcome.BONUS, **self.said())

    with pytest.raises(UserError, match="not lossless, though it says so"):
        sd.SpeculativeDecoder(table_lm(TARGET), sd.NoProposer(), Uniform())


def test_attributes_are_part_of_what_is_remembered() -> None:
    class Biased(Rejection):
        def __init__(self, bias: float):
            self.bias = bias

        def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
            return super().verify(
                proposal, (verifier_probs + self.bias) / (1 + 3 * self.bias), stream
            )

    assert finding(Biased(0.0), Draw.SINGLE).lossy is None
    assert finding(Biased(0.1), Draw.SINGLE).lossy is not None


@pytest.mark.parametrize("draw", [None, *Draw])
def test_each_draw_is_enumerated(draw: Draw | None) -> None:
    assert finding(sd.Match(), draw).lossy is None


def test_deep_trees_are_among_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that only the third level of a chain shows."""
    rewritten(
        "specdec.verification.last_token.LastToken._weights",
        "self.nodes.places.get(each)",
        "(self.nodes.places.get(each) if each[1] < 2 else None)",
    )(monkeypatch)
    fresh: Callable[[], Any] = type("Fresh", (Rejection,), {})
    assert "a chain of 3" in str(finding(fresh(), Draw.SINGLE).lossy)


def decoder(rule: Any, **options: Any) -> sd.SpeculativeDecoder:
    proposer = sd.DraftModel(table_lm(TARGET), sd.Chain(2))
    return sd.SpeculativeDecoder(table_lm(TARGET), proposer, rule, **options)

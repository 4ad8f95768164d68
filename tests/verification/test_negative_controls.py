"""Wrong variants that the harness of test_exact.py must reject: a test that cannot fail is none.

Each is a bug that has been shipped by some project (verification_theory.md, section 5.4). For one
draft token the total variation that it causes has a closed form, worked out here by hand from the
vectors p and q and compared with what the harness enumerates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from specdec.core.outcome import Outcome
from specdec.core.randomness import Stream
from specdec.core.tree import CandidateTree
from specdec.core.values import Draw, Proposal, Verdict
from specdec.decoding.stopping import Stopping
from specdec.proof.drafting import ROOT_TOKEN, Parents, chain, draft_rows, ranked, single
from specdec.proof.enumeration import outcomes
from specdec.verification.rejection import Rejection
from tests.support.harness import Block, Play, bias, completed, names, played, verified
from tests.support.toy import (
    Conditional,
    full_context,
    memoryless,
    mixture,
    text_distribution,
    total_variation,
)

DETECTED = 1e-3
P_ROW, Q_ROW = (0.5, 0.3, 0.2), (0.15, 0.2, 0.65)
P_HAND, Q_HAND = memoryless(*P_ROW), memoryless(*Q_ROW)
THRESHOLD = 0.45  # a draft token less likely than this is "not confident"
RULE = Rejection()

Vectors = Callable[[Tensor, Tensor], float]  # p [V], q [V] -> total variation


@dataclass(frozen=True)
class Control:
    """A wrong round for chains of gamma tokens, and the bias it has for one token."""

    name: str
    play: Callable[[Conditional, Conditional, int], Play]
    expected: Vectors | None = None

    def __str__(self) -> str:
        return self.name


# --- wrong drafts -------------------------------------------------------------------------------


def _argmax_draft_with_soft_q(p: Conditional, q: Conditional, gamma: int) -> Play:
    def drafted(parents: Parents, q: Conditional, stream: Stream) -> Proposal:
        tree = ranked(parents, q, stream).tree
        return Proposal(tree, Draw.SINGLE, draft_rows(tree, q))

    return played(RULE, drafted, chain(gamma), p, q)


def _draft_at_another_temperature(p: Conditional, q: Conditional, gamma: int) -> Play:
    def drafted(parents: Parents, q: Conditional, stream: Stream) -> Proposal:
        tree = single(parents, lambda text: _sharpened(q(text), 0.7), stream).tree
        return Proposal(tree, Draw.SINGLE, draft_rows(tree, q))

    return played(RULE, drafted, chain(gamma), p, q)


def _draft_from_top_2_with_full_q(p: Conditional, q: Conditional, gamma: int) -> Play:
    def drafted(parents: Parents, q: Conditional, stream: Stream) -> Proposal:
        tree = single(parents, lambda text: _top_2(q(text)), stream).tree
        return Proposal(tree, Draw.SINGLE, draft_rows(tree, q))

    return played(RULE, drafted, chain(gamma), p, q)


def _last_token_dropped_if_unlikely(p: Conditional, q: Conditional, gamma: int) -> Play:
    """Drafting stops at a token that is not confident, and that token is thrown away."""

    def drafted(parents: Parents, q: Conditional, stream: Stream) -> Proposal:
        tree = single(parents, q, stream).tree
        distributions = draft_rows(tree, q)
        tokens = tree.token_ids[1:]
        confident = [float(distributions[i, token]) >= THRESHOLD for i, token in enumerate(tokens)]
        kept = tokens[: confident.index(False)] if False in confident else tokens
        return Proposal(CandidateTree.chain(ROOT_TOKEN, kept), Draw.SINGLE, distributions)

    return played(RULE, drafted, chain(gamma), p, q)


# --- wrong rules --------------------------------------------------------------------------------


class _Variant:
    """Rejection along a chain, with one piece that a control replaces."""

    lossless_for = frozenset({Draw.SINGLE})
    defined_for = lossless_for
    needs_q = True

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        tokens = proposal.tree.token_ids[1:]
        q = proposal.draft_probs
        assert q is not None
        for depth, token in enumerate(tokens):
            if not self.accepts(stream, verifier_probs[depth], q[depth], token):
                weights = self.correction(verifier_probs, q, depth)
                path = tuple(range(1, depth + 1))
                return Verdict(path, stream.choose(weights), Outcome.RECOVERED)
        path = tuple(range(1, len(tokens) + 1))
        return Verdict(path, stream.choose(self.bonus(verifier_probs[-1])), Outcome.BONUS)

    def accepts(self, stream: Stream, p: Tensor, q: Tensor, token: int) -> bool:
        return stream.accept(float(p[token] / q[token]))

    def correction(self, p: Tensor, q: Tensor, depth: int) -> Tensor:
        residual = (p[depth] - q[depth]).clamp(min=0)
        return residual if residual.sum() > 0 else p[depth]

    def bonus(self, p: Tensor) -> Tensor:
        return p


class _CorrectionFromP(_Variant):
    def correction(self, p: Tensor, q: Tensor, depth: int) -> Tensor:
        return p[depth]


class _ResidualOfTheNextRow(_Variant):
    def correction(self, p: Tensor, q: Tensor, depth: int) -> Tensor:
        return super().correction(p, q, min(depth + 1, len(q) - 1))


class _AbsoluteResidual(_Variant):
    def correction(self, p: Tensor, q: Tensor, depth: int) -> Tensor:
        return (p[depth] - q[depth]).abs()


class _MatchThenRedraw(_Variant):
    def accepts(self, stream: Stream, p: Tensor, q: Tensor, token: int) -> bool:
        return stream.choose(p) == token

    def correction(self, p: Tensor, q: Tensor, depth: int) -> Tensor:
        return p[depth]


class _BonusWithoutWarper(_Variant):
    """The verifier's p is after temperature 0.5; the bonus row is left as it was before."""

    def bonus(self, p: Tensor) -> Tensor:
        return _sharpened(p, 2.0)  # undoes T = 0.5


class _FirstTokenUnverified(_Variant):
    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        assert proposal.draft_probs is not None
        trusted = torch.cat([proposal.draft_probs[:1], verifier_probs[1:]])
        return super().verify(proposal, trusted, stream)


def _ruled_by(rule: _Variant) -> Callable[[Conditional, Conditional, int], Play]:
    return lambda p, q, gamma: played(rule, single, chain(gamma), p, q)


# --- what each of them does to one token --------------------------------------------------------


def _sharpened(row: Tensor, temperature: float) -> Tensor:
    powered = row ** (1 / temperature)
    return powered / powered.sum()


def _top_2(row: Tensor) -> Tensor:
    kept = row.masked_fill(row < row.topk(2).values[-1], 0.0)
    return kept / kept.sum()


def _tv(found: Tensor, wanted: Tensor) -> float:
    return 0.5 * float((found - wanted).abs().sum())


def _residual(p: Tensor, q: Tensor) -> Tensor:
    rest = (p - q).clamp(min=0)
    return rest / rest.sum()


def _emitted(p: Tensor, q: Tensor, drawn: Tensor) -> Tensor:
    """Return the first token's distribution if `drawn` is drafted and the rule believes q."""
    accepted = drawn * (p / q).clamp(max=1)
    return accepted + (1 - accepted.sum()) * _residual(p, q)


def _of_argmax(p: Tensor, q: Tensor) -> float:
    point = torch.zeros_like(q)
    point[q.argmax()] = 1.0
    return _tv(_emitted(p, q, point), p)


def _of_drop(p: Tensor, q: Tensor) -> float:
    kept = q * (q >= THRESHOLD)
    accepted = kept * (p / q).clamp(max=1)
    dropped = 1 - kept.sum()
    return _tv(dropped * p + accepted + (kept - accepted).sum() * _residual(p, q), p)


def _of_correction(weights: Callable[[Tensor, Tensor], Tensor]) -> Vectors:
    """The accepted mass is min(p, q); the rest comes from `weights` instead of the residual."""

    def expected(p: Tensor, q: Tensor) -> float:
        shared, other = p.minimum(q), weights(p, q)
        return _tv(shared + (1 - shared.sum()) * other / other.sum(), p)

    return expected


def _of_redraw(p: Tensor, q: Tensor) -> float:
    return _tv(p * q + (1 - (p * q).sum()) * p, p)


def _of_bonus(p: Tensor, q: Tensor) -> float:
    return float(p.minimum(q).sum()) * _tv(_sharpened(p, 2.0), p)


CONTROLS = [
    Control("argmax-draft-with-soft-q", _argmax_draft_with_soft_q, _of_argmax),
    Control(
        "draft-at-T-0.7-recorded-at-T-1",
        _draft_at_another_temperature,
        lambda p, q: _tv(_emitted(p, q, _sharpened(q, 0.7)), p),
    ),
    Control(
        "draft-from-top-2-recorded-in-full",
        _draft_from_top_2_with_full_q,
        lambda p, q: _tv(_emitted(p, q, _top_2(q)), p),
    ),
    Control("unlikely-token-dropped-after-it-was-seen", _last_token_dropped_if_unlikely, _of_drop),
    Control("correction-from-p", _ruled_by(_CorrectionFromP()), _of_correction(lambda p, q: p)),
    Control(
        "residual-without-clamp",
        _ruled_by(_AbsoluteResidual()),
        _of_correction(lambda p, q: (p - q).abs()),
    ),
    Control("match-then-redraw", _ruled_by(_MatchThenRedraw()), _of_redraw),
    Control("bonus-without-warper", _ruled_by(_BonusWithoutWarper()), _of_bonus),
    Control("first-token-unverified", _ruled_by(_FirstTokenUnverified()), lambda p, q: _tv(q, p)),
]
NEXT_ROW = Control("residual-of-the-next-row", _ruled_by(_ResidualOfTheNextRow()))


@pytest.mark.parametrize("control", CONTROLS, ids=names(CONTROLS))
def test_one_token_is_biased_by_what_the_arithmetic_says(control: Control) -> None:
    """Two tokens of text, of which one is drafted; p and q forget what came before."""
    found = bias(control.play(P_HAND, Q_HAND, 1), P_HAND, 2)
    assert control.expected is not None
    expected = control.expected(P_HAND(()), Q_HAND(()))
    assert expected > DETECTED, f"{control}: the vectors do not show this bug"
    assert found == pytest.approx(expected, abs=1e-12), (
        f"{control}: the harness finds TV {found:.4f}, the arithmetic says {expected:.4f}"
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gamma", [2, 3])
@pytest.mark.parametrize("control", [*CONTROLS, NEXT_ROW], ids=names([*CONTROLS, NEXT_ROW]))
def test_longer_chains_are_rejected_too(control: Control, gamma: int, seed: int) -> None:
    """Full-context tables, as in test_exact.py."""
    p = full_context(100 + seed)
    q = mixture(p, full_context(900 + seed), 0.4)
    found = bias(control.play(p, q, gamma), p, gamma + 1)
    assert found > DETECTED, f"{control}: TV {found:.2e} is not seen; the harness is blind to it"


def test_residual_of_the_next_row_is_biased_by_what_the_arithmetic_says() -> None:
    """With gamma = 2 only the first token's correction is wrong: it is drawn after x_1 was seen."""
    p, q = full_context(100), full_context(900)
    expected = p(()).minimum(q(()))
    rejected = (q(()) - p(())).clamp(min=0)
    for token, mass in enumerate(rejected):
        expected = expected + mass * _residual(p((token,)), q((token,)))
    found = bias(NEXT_ROW.play(p, q, 2), p, 3)
    assert found == pytest.approx(_tv(expected, p(())), abs=1e-12)
    assert found > DETECTED


def test_an_end_token_pruned_by_its_own_value_is_rejected() -> None:
    """Whether a node is submitted must not depend on its own token.

    Dropping a drafted end token makes the row above it a bonus row, and the text ends too rarely.
    """
    end = 2

    def play(stream: Stream) -> Block:
        proposal = single(chain(1), Q_HAND, stream)
        if proposal.tree.token_ids[1] == end:
            proposal = Proposal(CandidateTree.chain(ROOT_TOKEN, ()), Draw.SINGLE, Q_HAND(())[None])
        block = verified(RULE, proposal, P_HAND, stream)
        return Block(tuple(Stopping(2, frozenset({end})).cut((), block.token_ids)[0]), 0)

    ends = frozenset({end})
    distribution = completed(outcomes(play), P_HAND, 2, ends)
    found = total_variation(distribution, text_distribution(P_HAND, 2, ends))
    p, q = P_HAND(()), Q_HAND(())
    first = q.minimum(p)  # q <= p for all tokens but the end, so none of them is rejected
    first[end] = 0.0
    first = first + q[end] * p
    assert found == pytest.approx(_tv(first, p), abs=1e-12)
    assert found > DETECTED


def test_wrong_rows_after_pruning_are_rejected() -> None:
    """Rows that keep their old numbers belong to other nodes once nodes are renumbered."""
    p, q = full_context(101), full_context(901)

    def play(stream: Stream) -> Block:
        proposal = single(chain(2), q, stream)
        assert proposal.draft_probs is not None
        shifted = Proposal(proposal.tree, Draw.SINGLE, proposal.draft_probs.roll(1, dims=0))
        return verified(RULE, shifted, p, stream)

    assert bias(play, p, 3) > DETECTED


def test_the_right_variant_passes_the_same_tables() -> None:
    """The controls differ from this by one line each, so it is that line that is rejected."""
    for seed in range(3):
        p = full_context(100 + seed)
        q = mixture(p, full_context(900 + seed), 0.4)
        assert bias(_ruled_by(_Variant())(p, q, 3), p, 4) < 1e-12
        assert bias(played(RULE, single, chain(3), p, q), p, 4) < 1e-12
    assert bias(_ruled_by(_Variant())(P_HAND, Q_HAND, 1), P_HAND, 2) < 1e-12

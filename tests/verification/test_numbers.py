"""Rounding, extreme rows, and extreme noise."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree
from specdec.core.values import Draw, Proposal
from specdec.proof.drafting import DRAFTERS, ROOT_TOKEN, chain
from specdec.verification.block import Block as BlockRule
from specdec.verification.gbv import GreedyMultiPath
from specdec.verification.kseq import KSeq
from specdec.verification.kseq_block import KSeqBlock
from specdec.verification.lenient import Lenient
from specdec.verification.match import Match
from specdec.verification.odds import ratio, residual
from specdec.verification.rejection import Rejection
from specdec.verification.top_k import TopK
from specdec.verification.top_plus_one import TopPlusOne
from specdec.verification.traversal import Traversal
from specdec.verification.typical import Typical
from tests.support.harness import bias, names
from tests.support.rule_cases import (
    BINARY,
    CASES,
    HAND,
    RANDOM,
    THREE,
    THREE_PATHS,
    TWO,
    Case,
    cases,
)
from tests.support.rule_checks import ConstantStream, check_zero_is_never_accepted
from tests.support.toy import Conditional, Tokens

SINGLE_PRECISION = 1e-6
LARGE_V = 50_000

# --- float32 and half precision -----------------------------------------------------------------

ON_FLOATS = [
    case
    for case in CASES
    if case.parents in (chain(2), TWO, THREE) and not (case.drafter and case.parents != THREE)
]


def _rounded(distribution: Conditional, dtype: torch.dtype) -> Conditional:
    """Round a distribution as a model of that type would: its logits, which are then warped."""
    return lambda text: Sampling().warp(distribution(text).log().to(dtype))


HALF = [
    pytest.param(dtype, marks=pytest.mark.thorough) for dtype in (torch.bfloat16, torch.float16)
]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("case", ON_FLOATS, ids=names(ON_FLOATS))
def test_tables_of_any_type_give_the_distribution_to_float32_rounding(
    case: Case, dtype: torch.dtype
) -> None:
    """p is what the rounded logits say; the rule must not lose more than float32 does."""
    for pair in (RANDOM[0], RANDOM[4], HAND[7]):
        p, q = _rounded(pair.p, dtype), _rounded(pair.q, dtype)
        assert p(()).dtype is torch.float32, "ratios and residuals are computed in this type"
        found = bias(case.play(p, q), p, case.length)
        assert found < SINGLE_PRECISION, f"TV {found:.1e} with {dtype} logits for {pair}"


class _Refusing:
    """A stream that notes each probability and each distribution, and says no whenever it may."""

    def __init__(self) -> None:
        self.probabilities: list[float] = []
        self.distributions: list[Tensor] = []

    def accept(self, probability: float) -> bool:
        self.probabilities.append(probability)
        return probability >= 1

    def choose(self, weights: Tensor) -> int:
        self.distributions.append(weights.double() / weights.double().sum())
        return int(weights.argmax())

    def choose_each(self, weights: Tensor) -> Callable[[int], int]:
        return lambda row: self.choose(weights[row])


def _peaked(seed: int, num_rows: int, scale: float) -> Tensor:  # [num_rows, LARGE_V] float64
    """Make logits like those of a language model: few large ones, a long tail."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, LARGE_V, generator=generator, dtype=torch.float64) * scale


def _large(draw: Draw, parents: tuple[int, ...], scale: float) -> tuple[Proposal, Tensor]:
    """Draft with the product's own streams from rows over a large vocabulary; float32."""
    tables = [_peaked(seed, 1 + max(parents), scale).softmax(-1).float() for seed in (1, 2)]
    mixed = 0.5 * tables[0] + 0.5 * tables[1]
    deep: dict[Tokens, int] = {}

    def q(
        text: Tokens,
    ) -> Tensor:  # one row for each text, in the order in which they are asked for
        return mixed[deep.setdefault(text, len(deep) % len(mixed))]

    drawn = DRAFTERS[draw](parents, q, RandomStream("draft", draw.value, scale))
    return drawn, _peaked(3, len(drawn.tree.parents), scale).softmax(-1).float()


LARGE = [
    *cases(Rejection(), Draw.SINGLE, (chain(3),)),
    *cases(Rejection(), Draw.IID, (BINARY,)),
    *cases(Rejection(), Draw.WITHOUT_REPLACEMENT, (BINARY,)),
    *cases(BlockRule(), Draw.SINGLE, (chain(3),)),
    *cases(Traversal(), Draw.IID, (BINARY,)),
    *cases(Traversal(), Draw.WITHOUT_REPLACEMENT, (BINARY,)),
    *cases(KSeq(), Draw.IID, (BINARY,)),
    *cases(KSeqBlock(), Draw.IID, (BINARY,)),
    *cases(GreedyMultiPath(), Draw.PATHS, (THREE_PATHS,)),
    *cases(TopPlusOne(), Draw.TOP_PLUS_ONE, (BINARY,)),
    *cases(Match(), Draw.IID, (BINARY,)),
    *(Case(rule, Draw.SINGLE, chain(3)) for rule in (Lenient(), Typical(), TopK())),
]


@pytest.mark.parametrize("scale", [1.0, 4.0, 30.0], ids=lambda scale: f"scale-{scale:g}")
@pytest.mark.parametrize("case", LARGE, ids=names(LARGE))
def test_a_large_vocabulary_in_float32_is_as_good_as_in_float64(case: Case, scale: float) -> None:
    """From flat rows to one-hot ones: the same probabilities and distributions, and never NaN."""
    proposal, p = _large(case.draw, case.parents, scale)
    assert proposal.draft_probs is not None
    wide = replace(proposal, draft_probs=proposal.draft_probs.double())
    narrow_stream, wide_stream = _Refusing(), _Refusing()
    narrow = case.rule.verify(proposal, p, narrow_stream)
    other = case.rule.verify(wide, p.double(), wide_stream)
    assert narrow.path == other.path
    assert narrow_stream.probabilities == pytest.approx(wide_stream.probabilities, abs=1e-5)
    for ours, theirs in zip(narrow_stream.distributions, wide_stream.distributions, strict=True):
        assert 0.5 * float((ours - theirs).abs().sum()) < 1e-5
    numbers = [narrow.expected_accepted, *narrow.overlap, *narrow.bound]
    wanted = [other.expected_accepted, *other.overlap, *other.bound]
    assert numbers == pytest.approx(wanted, abs=1e-4), "NaN is equal to nothing"
    assert torch.tensor(narrow.divergence).allclose(torch.tensor(other.divergence), atol=1e-4)


@pytest.mark.parametrize("case", LARGE, ids=names(LARGE))
def test_a_text_never_gets_a_token_that_p_excludes(case: Case) -> None:
    """Top-k of p leaves 40 of 50 000; real streams, a few rounds."""
    for number in range(5):
        proposal, p = _large(case.draw, case.parents, 2.0)
        p = p * (p >= p.topk(40, dim=-1).values[:, -1:])
        p /= p.sum(dim=-1, keepdim=True)
        verdict = case.rule.verify(proposal, p, RandomStream("verify", number))
        text = [*(proposal.tree.token_ids[node] for node in verdict.path), verdict.next_token]
        for node, token in zip((0, *verdict.path), text, strict=True):
            assert p[node, token] > 0


def test_a_residual_without_mass_is_its_fallback() -> None:
    """p <= q everywhere, as rounding can have it; rows with mass are as they were."""
    q = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    p = torch.tensor([[0.4999999, 0.3, 0.2], [0.2, 0.3, 0.5]])
    fallback = torch.tensor([[0.1, 0.2, 0.7], [0.1, 0.2, 0.7]])
    found = residual(p, q, fallback)
    assert torch.allclose(found, torch.tensor([[0.1, 0.2, 0.7], [0.0, 0.0, 1.0]]))
    assert found[1, :2].max() < 1e-29, "no more than a hair of the fallback"


def test_a_ratio_is_a_probability_whatever_is_divided() -> None:
    """0 / 0, x / 0, tiny / tiny."""
    p = torch.tensor([0.0, 0.5, 1e-38, 0.3, 0.0])
    q = torch.tensor([0.0, 0.0, 1e-39, 0.6, 0.5])
    assert ratio(p, q).tolist() == [0.0, 0.0, 1.0, 0.5, 0.0]


EMPTYING = [
    case for case in CASES if case.draw is not Draw.DETERMINISTIC and len(case.parents) == 3
]


@pytest.mark.parametrize("case", EMPTYING, ids=names(EMPTYING))
def test_p_a_little_below_q_everywhere_is_no_trouble(case: Case) -> None:
    """The distribution is p's up to that little: what falls back to p does so without NaN."""
    q = HAND[0].q
    almost = 1 - 2**-40
    assert bias(case.play(lambda text: q(text) * almost, q), q, case.length) < 1e-11


# --- extreme noise ------------------------------------------------------------------------------


LAST = 1 - 2**-53  # the largest number below 1


def test_noise_of_zero_never_accepts_what_is_impossible() -> None:
    """Accept if u < p / q, strictly: u = 0 is drawn once in 2^53 times, or 2^24 in float32."""
    check_zero_is_never_accepted(ConstantStream(0.0))


@pytest.mark.parametrize("number", [0.0, LAST], ids=["zero", "almost-one"])
def test_extreme_noise_draws_no_token_without_weight(number: float) -> None:
    """Neither the first nor the last token, nor one beyond the vocabulary."""
    stream = ConstantStream(number)
    for weights in ([0.0, 0.3, 0.3, 0.0], [0.0, 1e-30, 0.0], [0.0] * 5 + [1.0] + [0.0] * 5):
        for dtype in (torch.float32, torch.float64):
            row = torch.tensor(weights, dtype=dtype)
            assert row[stream.choose(row)] > 0
            assert row[stream.choose_each(row[None])(0)] > 0
    assert ConstantStream(LAST).accept(1.0), "certain is certain"


LACKING = [case for case in CASES if case.parents in (chain(2), TWO) and case.drafter is None]


@pytest.mark.parametrize("case", LACKING, ids=names(LACKING))
def test_no_rule_accepts_an_impossible_token_at_noise_zero(case: Case) -> None:
    """p lacks the token that every node of the tree bears."""
    tree = CandidateTree((ROOT_TOKEN, *(2 for _ in case.parents[1:])), case.parents)
    if case.draw in (Draw.WITHOUT_REPLACEMENT, Draw.TOP_PLUS_ONE):
        tokens = [1 + (number % 2) for number in range(1, len(case.parents))]
        tree = CandidateTree((ROOT_TOKEN, *tokens), case.parents)
    p = torch.tensor([1.0, 0.0, 0.0]).expand(len(case.parents), -1)
    q = torch.tensor([0.2, 0.3, 0.5]).expand(len(case.parents), -1)
    rows = None if case.draw is Draw.DETERMINISTIC else q
    for number in (0.0, LAST):
        verdict = case.rule.verify(
            Proposal(tree, case.draw, rows), p.clone(), ConstantStream(number)
        )
        assert (verdict.path, verdict.next_token) == ((), 0)

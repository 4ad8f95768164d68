"""P(A >= k | text) in closed form, against the rules themselves, enumerated outcome by outcome.

For each text x and each k: P(x comes out and A >= k) by enumeration of all drafts and decisions
must be p(x) times the survival that replay computes from x alone.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from specdec.core.closed_form import TextNodes
from specdec.core.errors import Unfit
from specdec.core.protocols import VerificationRule
from specdec.core.sampling import Sampling
from specdec.core.values import Draw
from specdec.proof.drafting import (
    DRAFTERS,
    PASSES,
    Parents,
    chain,
    drafts,
)
from specdec.recording.texts import Text
from specdec.replaying.arm import ClosedArm, closed_form_of, is_decided_by_text
from specdec.replaying.closed_form import score, survival_of
from specdec.replaying.draft_distributions import ModelDistributions
from specdec.tree.chain import Chain
from specdec.tree.filtered import Filtered
from specdec.tree.fixed import FixedTree, Path
from specdec.tree.sampled import SampledTree
from specdec.tree.sparse import Sparse
from specdec.verification import match_form, rejection_form
from specdec.verification.rejection import Rejection
from tests.support.harness import Block, block_distribution, depth_of
from tests.support.rule_cases import rules_by_name
from tests.support.toy import (
    Conditional,
    Tokens,
    complete,
    full_context,
    memoryless,
    mixture,
    table_lm,
)

EXACT = 1e-12
RULES = rules_by_name()
TWO: Parents = (-1, 0, 0)
THREE: Parents = (-1, 0, 0, 0)
BINARY: Parents = (-1, 0, 0, 1, 1, 2, 2)
UNEVEN: Parents = (-1, 0, 0, 2, 3, 3)
TWO_PATHS: Parents = (-1, 0, 0, 1, 2)
THREE_PATHS: Parents = (-1, 0, 0, 0, 1, 2, 3)
DEEP_PATHS: Parents = (-1, 0, 0, 1, 2, 3, 4)
# Without replacement two children at most: the shares of a third are right on average, see below.
SHAPES: Mapping[Draw, Sequence[Parents]] = {
    Draw.DETERMINISTIC: (BINARY, UNEVEN),
    Draw.SINGLE: (chain(3),),
    Draw.FILTERED: (chain(3),),
    Draw.IID: (TWO, BINARY, THREE, UNEVEN),
    Draw.PATHS: (TWO, THREE, TWO_PATHS, THREE_PATHS, DEEP_PATHS),
    Draw.WITHOUT_REPLACEMENT: (BINARY, UNEVEN),
    Draw.TOP_PLUS_ONE: (TWO, BINARY, THREE),
}


def is_known(rule: VerificationRule, draw: Draw) -> bool:
    """Whether a rule tells how it accepts such candidates, given the text."""
    if draw is Draw.DETERMINISTIC:
        return is_decided_by_text(rule, draw)
    return closed_form_of(rule, draw) is not None


CASES = [
    (name, draw, parents)
    for name, rule in RULES.items()
    for draw in Draw
    if is_known(rule, draw)
    for parents in SHAPES[draw]
]


def pair(seed: int) -> tuple[Conditional, Conditional]:
    p = full_context(seed, 0.7)
    return p, mixture(p, full_context(seed + 100, 0.7), 0.4)


PAIRS = {
    "alike": pair(1),
    "unlike": pair(5),
    "certain draft": (memoryless(0.2, 0.5, 0.3), memoryless(0.0, 1.0, 0.0)),
    "the same": (memoryless(0.2, 0.5, 0.3), memoryless(0.2, 0.5, 0.3)),
    "apart": (memoryless(0.4, 0.6, 0.0), memoryless(0.0, 0.3, 0.7)),
}


def paths_of(parents: Parents) -> list[Path]:
    paths: list[Path] = [()]
    for node, parent in enumerate(parents[1:], start=1):
        paths.append((*paths[parent], parents[1:node].count(parent)))
    return paths[1:]


def tree_of(draw: Draw, parents: Parents) -> FixedTree:
    if draw is Draw.SINGLE:
        return Chain(depth_of(parents))
    if draw is Draw.FILTERED:
        return Filtered(depth_of(parents), min_prob=PASSES)
    if draw is Draw.DETERMINISTIC:
        return Sparse(paths_of(parents))
    return SampledTree(paths_of(parents), draw)


def text(tokens: Tokens, p: Conditional) -> Text:
    """A text behind one token of prompt, long enough that no step is cut."""
    log_p = [float(p(tokens[:place])[token].log()) for place, token in enumerate(tokens)]
    return Text(repr(tokens), "", 0, (0,), tokens, tuple(log_p), "length", len(tokens) + 9)


def behind_root(distribution: Conditional) -> Conditional:
    return lambda tokens: distribution(tokens[1:])


def survival(
    arm: ClosedArm, texts: Sequence[Text], p: Conditional, q: Conditional
) -> torch.Tensor:  # [B, D + 1]
    distributions, verifier = ModelDistributions(table_lm(behind_root(q))), table_lm(behind_root(p))
    scores = score(texts, distributions, [arm], Sampling(), verifier, vocab_size=3)
    return survival_of(arm, scores)[:, 0]


def joint(
    distribution: dict[Block, float], p: Conditional, length: int, depth: int
) -> dict[Tokens, float]:
    """Return P(the text is x and A >= depth), the rest of it completed with p."""
    reached: dict[Tokens, float] = {}
    for block, mass in distribution.items():
        if block.num_accepted >= depth:
            reached[block.token_ids] = reached.get(block.token_ids, 0.0) + mass
    return complete(reached, p, length)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(("rule", "draw", "parents"), CASES, ids=str)
def test_survival_given_the_text(rule: str, draw: Draw, parents: Parents, pair: str) -> None:
    p, q = PAIRS[pair]
    distribution = block_distribution(RULES[rule], drafts(DRAFTERS[draw], parents, q), p)
    length = depth_of(parents) + 1
    alive = [x for x in product(range(3), repeat=length) if mass_of(x, p) > 0]
    arm = ClosedArm(tree_of(draw, parents), RULES[rule])
    found = survival(arm, [text(x, p) for x in alive], p, q)
    for depth in range(length):
        exact = joint(distribution, p, length, depth)
        for row, x in enumerate(alive):
            ours = mass_of(x, p) * float(found[row, depth])
            assert ours == pytest.approx(exact.get(x, 0.0), abs=EXACT), (x, depth)


def mass_of(tokens: Tokens, p: Conditional) -> float:
    mass = 1.0
    for place, token in enumerate(tokens):
        mass *= float(p(tokens[:place])[token])
    return mass


@pytest.mark.parametrize("rule", ["rejection", "match"])
def test_third_children_without_replacement_are_right_on_average(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their shares are means over drawn sequences; with many the error is small."""
    monkeypatch.setattr(f"specdec.verification.{rule}_form.NUM_SEQUENCES", 40_000)
    p, q = full_context(3, 0.9, vocab_size=4), full_context(17, 0.9, vocab_size=4)
    drafter = DRAFTERS[Draw.WITHOUT_REPLACEMENT]
    distribution = block_distribution(RULES[rule], drafts(drafter, THREE, q), p)
    exact = joint(distribution, p, 2, 1)
    alive = list(product(range(4), repeat=2))
    arm = ClosedArm(tree_of(Draw.WITHOUT_REPLACEMENT, THREE), RULES[rule])
    distributions, verifier = (
        ModelDistributions(table_lm(behind_root(q), 4)),
        table_lm(behind_root(p), 4),
    )
    texts = [text(x, p) for x in alive]
    generator = torch.Generator().manual_seed(5)
    scores = score(texts, distributions, [arm], Sampling(), verifier, 4, generator)
    found = survival_of(arm, scores)[:, 0, 1]
    for row, x in enumerate(alive):
        assert mass_of(x, p) * float(found[row]) == pytest.approx(exact.get(x, 0.0), abs=2e-3)


def nodes(p: Tensor, q: Tensor) -> TextNodes:
    """Make nodes of three children each, of which the n-th is followed by token n."""
    noise = torch.Generator().manual_seed(1)
    return TextNodes(q, torch.arange(len(p)), p.diagonal().double().log(), 3, p, generator=noise)


def test_the_third_share_matters_in_that_test() -> None:
    p, q = full_context(3, 0.9, vocab_size=4), full_context(17, 0.9, vocab_size=4)
    of_p, of_q = (torch.stack([distribution(())] * 4) for distribution in (p, q))
    found = rejection_form.without_replacement(nodes(of_p, of_q))
    assert float((of_p.diagonal() * found[:, 2]).sum()) > 0.02


@pytest.mark.parametrize(
    ("share", "second"),
    [
        (rejection_form.without_replacement, (1.0, 0.9, 0.6)),
        (match_form.without_replacement, (0.6, 0.3, 0.1)),
    ],
    ids=["rejection", "match"],
)
def test_shares_of_a_draft_that_is_nearly_sure(
    share: Callable[[TextNodes], Tensor], second: Sequence[float]
) -> None:
    """The first child is the sure one, whatever the text has; float32 knows no 1 - q of it."""
    p = torch.tensor([[0.4, 0.3, 0.2, 0.1]] * 4, dtype=torch.float64)
    q = torch.tensor([[1 - 1e-8, 6e-9, 3e-9, 1e-9]] * 4, dtype=torch.float64)
    found = [share(nodes(of_p, of_q)).double() for of_p, of_q in ((p, q), (p.float(), q.float()))]
    assert found[1][1:, 1].tolist() == pytest.approx(second, abs=1e-6)
    assert torch.allclose(*found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.45, 0.7])
@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_drafting_that_stops_where_the_draft_is_not_sure(rule: str, threshold: float) -> None:
    """Known before the token is drawn, so that it is a shorter chain there, for any text."""
    p, q = PAIRS["alike"]
    arm = ClosedArm(Chain(3, min_confidence=threshold), RULES[rule])
    alive = list(product(range(3), repeat=4))
    found = survival(arm, [text(x, p) for x in alive], p, q)
    for depth in range(1, 4):
        for row, x in enumerate(alive):
            sure = [float(q(x[:place]).max()) >= threshold for place in range(3)]
            length = sure.index(False) if False in sure else 3
            full = survival(ClosedArm(Chain(3), RULES[rule]), [text(x, p)], p, q)[0]
            assert found[row, depth] == pytest.approx(float(full[depth]) * (depth <= length))


def test_another_draft_temperature_is_another_distribution() -> None:
    p, q = PAIRS["alike"]

    def cold(tokens: Tokens) -> Tensor:
        return (q(tokens) ** 2) / (q(tokens) ** 2).sum()

    texts = [text(x, p) for x in product(range(3), repeat=3)]
    colder = survival(ClosedArm(Chain(2), Rejection(), temperature=0.5), texts, p, q)
    by_hand = survival(ClosedArm(Chain(2), Rejection()), texts, p, cold)
    assert torch.allclose(colder, by_hand, atol=EXACT, rtol=0)


@pytest.mark.parametrize(
    ("rule", "draw"),
    [
        ("traversal", Draw.IID),
        ("traversal", Draw.WITHOUT_REPLACEMENT),
        ("block", Draw.DETERMINISTIC),
        ("kseq", Draw.WITHOUT_REPLACEMENT),
        ("typical", Draw.SINGLE),
        ("lenient", Draw.SINGLE),
        ("top_k", Draw.DETERMINISTIC),
    ],
)
def test_what_has_no_closed_form_is_refused(rule: str, draw: Draw) -> None:
    shape = chain(2) if draw is Draw.SINGLE else BINARY
    with pytest.raises(Unfit, match=f"verification={rule}"):
        ClosedArm(tree_of(draw, shape), RULES[rule])

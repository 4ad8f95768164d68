"""Replay on a toy whose answer is known: a dynamic programme over all texts.

The verifier and its draft know no more than the last token, so the expected number of verifier
calls of real decoding follows from what one step does in each state, enumerated exactly.
"""

from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch

from specdec.core.sampling import Sampling
from specdec.core.values import Draw
from specdec.metrics import block_efficiency
from specdec.metrics.estimate import Estimate
from specdec.proof.drafting import DRAFTERS, Parents, chain, drafts
from specdec.recording.texts import Text
from specdec.replaying.arm import ClosedArm
from specdec.replaying.closed_form import replay
from specdec.replaying.draft_distributions import ModelDistributions
from specdec.replaying.expected_steps import Replayed, tally
from tests.replaying.test_closed_forms import (
    BINARY,
    RULES,
    TWO,
    TWO_PATHS,
    UNEVEN,
    behind_root,
    tree_of,
)
from tests.support.harness import Block, block_distribution, depth_of
from tests.support.toy import Conditional, Tokens, table_lm

LENGTH, NUM_TEXTS, NUM_SEEDS = 24, 60, 20
# Two states in which the draft is good, and one, which lasts, in which it is not.
P = torch.tensor([[0.55, 0.40, 0.05], [0.30, 0.62, 0.08], [0.07, 0.03, 0.90]], dtype=torch.float64)
Q = torch.tensor([[0.50, 0.45, 0.05], [0.35, 0.57, 0.08], [0.60, 0.30, 0.10]], dtype=torch.float64)


class Case(NamedTuple):
    rule: str
    draw: Draw
    parents: Parents


CASES = [
    Case("rejection", Draw.SINGLE, chain(1)),
    Case("rejection", Draw.SINGLE, chain(3)),
    Case("block", Draw.SINGLE, chain(3)),
    Case("match", Draw.SINGLE, chain(3)),
    Case("rejection", Draw.DETERMINISTIC, UNEVEN),
    Case("rejection", Draw.IID, BINARY),
    Case("kseq", Draw.IID, BINARY),
    Case("rejection", Draw.PATHS, TWO_PATHS),
    Case("gbv", Draw.PATHS, TWO_PATHS),
    Case("kseq_block", Draw.PATHS, TWO_PATHS),
    Case("rejection", Draw.WITHOUT_REPLACEMENT, UNEVEN),
    Case("top_plus_one", Draw.TOP_PLUS_ONE, TWO),
]


def distribution(rows: torch.Tensor, state: int = 0) -> Conditional:
    """Return what follows a state, and then each last token."""
    return lambda tokens: rows[tokens[-1] if tokens else state]


def cut(parents: Parents, depth: int) -> Parents:
    """Leave out what lies deeper: a request that may emit m tokens more gets no deeper tree."""
    paths = [0]
    for parent in parents[1:]:
        paths.append(paths[parent] + 1)
    kept = [node for node, at in enumerate(paths) if at <= depth]
    place = {node: number for number, node in enumerate(kept)}
    return tuple(-1 if node == 0 else place[parents[node]] for node in kept)


@cache
def blocks(case: Case, state: int, depth: int) -> dict[Block, float]:
    shape = cut(case.parents, depth)
    if len(shape) == 1:
        return {Block((token,), 0): float(P[state, token]) for token in range(3)}
    drafted = drafts(DRAFTERS[case.draw], shape, distribution(Q, state))
    return block_distribution(RULES[case.rule], drafted, distribution(P, state))


@cache
def calls(case: Case, state: int, left: int) -> float:
    """Return the expected number of verifier calls for so many tokens."""
    if left <= 0:
        return 0.0
    depth = min(depth_of(case.parents), left - 1)
    return 1.0 + sum(
        mass * calls(case, block.token_ids[-1], left - len(block.token_ids))
        for block, mass in blocks(case, state, depth).items()
    )


def texts_of(seed: int) -> list[Text]:
    generator = np.random.default_rng(seed)
    found: list[Text] = []
    for number in range(NUM_TEXTS):
        tokens: Tokens = ()
        for _ in range(LENGTH):
            row = distribution(P)(tokens).numpy()
            tokens = (*tokens, int(generator.choice(3, p=row)))
        log_p = [float(distribution(P)(tokens[:n])[token].log()) for n, token in enumerate(tokens)]
        found.append(Text(f"{number}", "", 0, (0,), tokens, tuple(log_p), "length", LENGTH))
    return found


@cache
def replayed(seed: int) -> dict[Case, list[Replayed]]:
    arms = {case: ClosedArm(tree_of(case.draw, case.parents), RULES[case.rule]) for case in CASES}
    names = {f"{number}": case for number, case in enumerate(CASES)}
    found = replay(
        texts_of(seed),
        ModelDistributions(table_lm(behind_root(distribution(Q)))),
        {name: arms[case] for name, case in names.items()},
        Sampling(),
        table_lm(behind_root(distribution(P))),
        vocab_size=3,
    )
    return {case: found[name] for name, case in names.items()}


def estimate(seed: int, case: Case) -> Estimate:
    return block_efficiency(tally(replayed(seed)[case]))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    hits: dict[Case, int] = {}
    for case, seed in product(CASES, range(NUM_SEEDS)):
        found, truth = estimate(seed, case), LENGTH / calls(case, 0, LENGTH)
        assert found.low is not None
        assert found.high is not None
        hits[case] = hits.get(case, 0) + (found.low <= truth <= found.high)
    share = sum(hits.values()) / (len(CASES) * NUM_SEEDS)
    assert 0.90 <= share <= 0.99, hits
    assert min(hits.values()) >= 16, hits


@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_average_over_many_texts_replay_is_the_truth(case: Case) -> None:
    sums = [tally(replayed(seed)[case]).total("num_steps") for seed in range(NUM_SEEDS)]
    mean = sum(sums) / (NUM_SEEDS * NUM_TEXTS)
    error = float(np.std(sums)) / NUM_TEXTS / NUM_SEEDS**0.5
    truth = calls(case, 0, LENGTH)
    assert abs(mean - truth) < 4 * error + 1e-9
    assert error < 0.02 * truth, "nothing could fail here"


def test_short_cuts_are_biased() -> None:
    """Steps begin where drafts fail: what is averaged over all positions looks too good.

    So do formulas that take acceptance for independent from token to token.
    """
    case = CASES[1]
    truth = LENGTH / calls(case, 0, LENGTH)
    parts = [part for seed in range(NUM_SEEDS) for part in replayed(seed)[case]]
    inside = [part.survival[:, : LENGTH - 3] for part in parts]
    uniform = float(torch.cat(inside).sum(dim=2).mean())
    survival = torch.cat([part.survival for part in parts])
    alpha = float(survival[:, : LENGTH - 1, 1].mean())  # P(the first is accepted), everywhere
    independent = (1 - alpha**4) / (1 - alpha)
    ours = float(np.mean([estimate(seed, case).value or 0.0 for seed in range(NUM_SEEDS)]))
    assert abs(ours / truth - 1) < 0.02
    assert uniform / truth - 1 > 0.05
    assert abs(independent / truth - 1) > 0.05

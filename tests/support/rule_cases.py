"""What the rules are enumerated on: rules x draws x shapes, and pairs of distributions."""

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from specdec.core.protocols import VerificationRule
from specdec.core.values import Draw
from specdec.proof.drafting import (
    DRAFTERS,
    Drafter,
    Parents,
    chain,
    repeated,
    top_plus_one_at_any_rate,
    unlikely,
)
from specdec.verification.block import Block as BlockRule
from specdec.verification.gbv import GreedyMultiPath
from specdec.verification.kseq import KSeq
from specdec.verification.kseq_block import KSeqBlock
from specdec.verification.match import Match
from specdec.verification.rejection import Rejection
from specdec.verification.top_plus_one import TopPlusOne
from specdec.verification.traversal import Traversal
from tests.support.harness import Play, depth_of, played
from tests.support.toy import Conditional, Tokens, full_context, memoryless, mixture

EXACT = 1e-12
V = 3
CONFIGURED = Path(__file__).parents[2] / "configs" / "verification"

# --- shapes -------------------------------------------------------------------------------------

EMPTY: Parents = (-1,)
TWO: Parents = (-1, 0, 0)
THREE: Parents = (-1, 0, 0, 0)  # all V tokens, or, drawn from less support, one too many
BELOW_FIRST: Parents = (-1, 0, 0, 1)
BELOW_SECOND: Parents = (-1, 0, 0, 2)
FORKED: Parents = (-1, 0, 0, 1, 1)
DEEP: Parents = (-1, 0, 0, 2, 3, 3)  # depths 1 1 2 3 3: refusals climb two levels
BINARY: Parents = (-1, 0, 0, 1, 1, 2, 2)  # (2, 2)
UNEVEN: Parents = (-1, 0, 0, 1, 3, 3, 2)  # depths 1 1 2 3 3 2, a node with one child, leaves
CROSSED: Parents = (-1, 0, 0, 2, 1, 3, 4)  # a level in another order than the one above it
FULL: Parents = (-1, 0, 0, 0, 2, 2, 2)  # all V tokens as children: the root never recovers
CHAINS: Sequence[Parents] = (EMPTY, chain(1), chain(2), chain(3))
SMALL_TREES = (EMPTY, chain(2), TWO, THREE, BELOW_FIRST, BELOW_SECOND, FORKED)
SAMPLED_TREES: Sequence[Parents] = (*SMALL_TREES, BINARY)
TWO_PATHS: Parents = (-1, 0, 0, 1, 2)
THREE_PATHS: Parents = (-1, 0, 0, 0, 1, 2, 3)
TWO_LONGER: Parents = (-1, 0, 0, 1, 2, 3, 4)
MANY_PATHS: Sequence[Parents] = (
    *(EMPTY, chain(2), TWO, THREE),
    *(TWO_PATHS, THREE_PATHS, TWO_LONGER),
)

# --- pairs of distributions
# ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A verifier's and a draft's distribution."""

    name: str
    p: Conditional
    q: Conditional

    def __str__(self) -> str:
        return self.name


def random_pair(seed: int, concentration: float, likeness: float, vocab_size: int = V) -> Pair:
    """Make full-context tables; the draft is like the verifier to some degree."""
    p = full_context(seed, concentration, vocab_size)
    q = mixture(p, full_context(seed + 1000, concentration, vocab_size), likeness)
    return Pair(f"random-{seed}-{concentration}-{likeness}", p, q)


def lacking(distribution: Conditional) -> Conditional:
    """Take one token from each row: after another text it is another one."""

    @cache
    def rest(text: Tokens) -> Tensor:
        row = distribution(text).clone()
        row[(sum(text) + len(text)) % V] = 0.0
        return row / row.sum()

    return rest


RANDOM = [
    random_pair(seed, concentration, likeness)
    for seed, (concentration, likeness) in enumerate(product((0.15, 0.7, 4.0), (0.0, 0.4, 0.9)))
]
SOFT = full_context(77, 1.0, V)
HAND = [
    Pair("equal", SOFT, SOFT),
    Pair("disjoint", memoryless(0.4, 0.6, 0.0), memoryless(0.0, 0.0, 1.0)),
    Pair("nearly-disjoint", memoryless(0.0, 0.3, 0.7), memoryless(0.6, 0.4, 0.0)),
    Pair("one-hot-p", memoryless(0.0, 1.0, 0.0), memoryless(0.2, 0.3, 0.5)),
    Pair("one-hot-q", SOFT, memoryless(0.0, 1.0, 0.0)),
    Pair("one-hot-both-equal", memoryless(1.0, 0.0, 0.0), memoryless(1.0, 0.0, 0.0)),
    Pair("one-hot-both-unlike", memoryless(1.0, 0.0, 0.0), memoryless(0.0, 0.0, 1.0)),
    Pair("q-lacks-a-token", SOFT, memoryless(0.5, 0.5, 0.0)),
    Pair("p-lacks-a-token", memoryless(0.5, 0.5, 0.0), SOFT),
    Pair("ties", memoryless(1 / 3, 1 / 3, 1 / 3), memoryless(1 / 3, 1 / 3, 1 / 3)),
    Pair("ties-in-q", SOFT, memoryless(1 / 3, 1 / 3, 1 / 3)),
    Pair("ties-of-p-and-q", memoryless(0.25, 0.25, 0.5), memoryless(0.25, 0.5, 0.25)),
]
PAIRS = [*RANDOM, *HAND]
# Trees of many draws are enumerated in seconds only if q has but two tokens after each text.
SPARSE = [
    Pair("sparse-like", full_context(4, 0.7, V), lacking(full_context(4, 0.7, V))),
    Pair("sparse-unlike", full_context(55, 0.7, V), lacking(full_context(56, 2.0, V))),
]
# Each case has one of them at least; what is the matter with a rule shows here first.
FIRST_PAIRS = [*RANDOM[3:5], HAND[1], HAND[4], HAND[7], HAND[-1], SPARSE[1]]
FEW_PAIRS = [RANDOM[3], RANDOM[4], *SPARSE]  # for what takes tenths of a second

# --- cases --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A rule, the way in which its candidates are drawn, and the shape of the tree."""

    rule: VerificationRule
    draw: Draw
    parents: Parents
    drafter: Drafter | None = None  # instead of the draw's own

    @property
    def drafts(self) -> Drafter:
        """The function that draws the candidates."""
        return self.drafter or DRAFTERS[self.draw]

    def play(self, p: Conditional, q: Conditional) -> Play:
        """Return one round, to be played with a stream."""
        return played(self.rule, self.drafts, self.parents, p, q)

    @property
    def length(self) -> int:
        """What one round can emit at most."""
        return depth_of(self.parents) + 1

    @property
    def pairs(self) -> Sequence[Pair]:
        """The pairs of distributions to try; fewer where drawn candidates have many outcomes."""
        if self.draw is Draw.DETERMINISTIC or len(self.parents) <= 3:
            return PAIRS
        if len(self.parents) == 4:
            return [RANDOM[3], RANDOM[4], *HAND[:9]]
        if self.parents in (CROSSED, TWO_LONGER) or isinstance(self.rule, KSeq | KSeqBlock):
            return SPARSE[1:]  # slow; k-SEQ walks down as rejection does
        if len(self.parents) == 5:
            return FEW_PAIRS
        return SPARSE if self.draw in (Draw.IID, Draw.PATHS) else [RANDOM[4], SPARSE[1]]

    def __str__(self) -> str:
        drafter = self.drafter.__name__ if self.drafter else self.draw.value
        return f"{type(self.rule).__name__}-{drafter}-{','.join(map(str, self.parents[1:]))}"


def cases(
    rule: VerificationRule,
    draw: Draw,
    shapes: Sequence[Parents],
    drafters: Sequence[Drafter | None] = (None,),
) -> list[Case]:
    """Return one case for each shape and drafter."""
    return [Case(rule, draw, parents, drafter) for parents in shapes for drafter in drafters]


FIXED_TREES = (BINARY, UNEVEN)
CASES = [
    *cases(Rejection(), Draw.DETERMINISTIC, (*CHAINS, FULL)),
    *cases(Rejection(), Draw.DETERMINISTIC, FIXED_TREES, (None, unlikely, repeated)),
    *cases(Rejection(), Draw.SINGLE, CHAINS),
    *cases(Rejection(), Draw.FILTERED, CHAINS),
    *cases(Rejection(), Draw.IID, SAMPLED_TREES),
    *cases(Rejection(), Draw.PATHS, (THREE, TWO_PATHS)),
    *cases(Rejection(), Draw.WITHOUT_REPLACEMENT, SAMPLED_TREES),
    *cases(Match(), Draw.DETERMINISTIC, (*CHAINS, FULL)),
    *cases(Match(), Draw.DETERMINISTIC, FIXED_TREES, (None, unlikely, repeated)),
    *cases(Match(), Draw.SINGLE, CHAINS),
    *cases(Match(), Draw.FILTERED, CHAINS),
    *cases(Match(), Draw.IID, (TWO, FORKED)),
    *cases(Match(), Draw.PATHS, (TWO, TWO_PATHS)),
    *cases(Match(), Draw.WITHOUT_REPLACEMENT, (TWO, FORKED)),
    *cases(Match(), Draw.TOP_PLUS_ONE, (TWO, FORKED)),
    *cases(BlockRule(), Draw.SINGLE, CHAINS),
    *cases(BlockRule(), Draw.FILTERED, CHAINS),
    *cases(Traversal(), Draw.SINGLE, CHAINS),
    *cases(Traversal(), Draw.FILTERED, CHAINS),
    *cases(Traversal(), Draw.IID, (*SAMPLED_TREES, DEEP, CROSSED)),
    *cases(Traversal(), Draw.PATHS, (TWO, TWO_PATHS)),
    *cases(Traversal(), Draw.WITHOUT_REPLACEMENT, (*SAMPLED_TREES, DEEP, CROSSED)),
    *cases(KSeq(), Draw.SINGLE, CHAINS),
    *cases(KSeq(), Draw.FILTERED, CHAINS),
    *cases(KSeq(), Draw.IID, SAMPLED_TREES),
    *cases(KSeq(), Draw.PATHS, (TWO, TWO_PATHS)),
    *cases(KSeqBlock(), Draw.SINGLE, CHAINS),
    *cases(KSeqBlock(), Draw.FILTERED, CHAINS),
    *cases(KSeqBlock(), Draw.IID, (*SAMPLED_TREES, DEEP, CROSSED)),
    *cases(KSeqBlock(), Draw.PATHS, MANY_PATHS),
    *cases(GreedyMultiPath(), Draw.SINGLE, CHAINS),
    *cases(GreedyMultiPath(), Draw.PATHS, MANY_PATHS),
    *cases(TopPlusOne(), Draw.SINGLE, CHAINS),
    *cases(TopPlusOne(), Draw.TOP_PLUS_ONE, SAMPLED_TREES),
    *cases(TopPlusOne(), Draw.TOP_PLUS_ONE, (THREE, FORKED), (top_plus_one_at_any_rate,)),
]


def configured_rules() -> list[Any]:
    """Return the class of each rule that has a YAML file."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(CONFIGURED.glob("*.yaml"))]
    found = {name for text in texts for name in re.findall(r"specdec\.verification[\w.]*", text)}
    assert found, f"no rule found in {CONFIGURED}"
    parted = [name.rpartition(".") for name in sorted(found)]
    return [getattr(importlib.import_module(module), name) for module, _, name in parted]


def rules_by_name() -> dict[str, VerificationRule]:
    """Return each rule that has a YAML file, by what the command line calls it."""
    return {kind.__module__.rpartition(".")[2]: kind() for kind in configured_rules()}

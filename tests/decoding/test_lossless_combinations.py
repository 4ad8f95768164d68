"""Every rule with every tree that it is lossless for: joint distributions over several steps.

The pairs follow from the rules' own `lossless_for`, so a new rule is tested by having a YAML file;
a new draw needs a tree in TREES. The streams are the decoder's own, and the negative controls show
what misused ones do to rules that look ahead (block verification) or draw from several candidates.
False alarms and power are those of joint_distribution.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from torch import Tensor

from specdec.core.protocols import TreePolicy, VerificationRule
from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.core.values import Context, Draw
from specdec.decoding.request import Flight
from specdec.decoding.stopping import Stopping
from specdec.proposer.draft_model import DraftModel
from specdec.tree.best_first import BestFirst
from specdec.tree.chain import Chain
from specdec.tree.dynamic import Dynamic
from specdec.tree.filtered import Filtered
from specdec.tree.paths import WholePaths
from specdec.tree.sampled import Sampled
from specdec.tree.sparse import Sparse
from specdec.verification.block import Block
from specdec.verification.rejection import Rejection
from specdec.verification.traversal import Traversal
from tests.support.arms import DRAFT, PROMPT, TARGET, V, decoder, requests
from tests.support.joint_distribution import assert_fits, assert_found, detectable, steps_per_text
from tests.support.noise import rekeyed
from tests.support.toy import memoryless, table_lm, text_distribution, warped

CONFIGS = Path(__file__).parents[2] / "configs" / "verification"
NUM_TEXTS = 1200
NUM_NARROW_TEXTS = 600
NUM_WRONG_TEXTS = 1000
DEPTH = 2
LENGTH = DEPTH + 2  # at least two steps, whatever is accepted
BATCH = 64
NARROW = Sampling(0.7, top_p=0.8)  # leaves one or two tokens of three in many rows
NARROWED = ("iid", "paths", "without_replacement", "top_plus_one")

TREES: dict[str, Callable[[], TreePolicy]] = {
    "chain": lambda: Chain(DEPTH),
    "chain_if_confident": lambda: Chain(DEPTH, min_confidence=0.42),
    "iid": lambda: Sampled([2, 1], "iid"),
    "paths": lambda: WholePaths(2, DEPTH),
    "without_replacement": lambda: Sampled([2, 1], "without_replacement"),
    "top_plus_one": lambda: Sampled([2, 1], "top_plus_one"),
    "filtered": lambda: Filtered(DEPTH, min_prob=0.3),
    "dynamic": lambda: Dynamic(num_nodes=4, max_depth=DEPTH, beam=2),
    "best_first": lambda: BestFirst(num_nodes=4, max_depth=DEPTH),
    "sparse": lambda: Sparse([[0, 0], [0, 1], [1]]),
}


def rules() -> list[VerificationRule]:
    """Build the rule of each YAML file."""
    found: list[VerificationRule] = []
    for path in sorted(CONFIGS.glob("*.yaml")):
        options = yaml.safe_load(path.read_text(encoding="utf-8"))["rule"]
        module, name = options.pop("_target_").rsplit(".", 1)
        found.append(getattr(import_module(module), name)(**options))
    return found


@dataclass(frozen=True)
class Pair:
    """A rule and a tree whose draw it claims."""

    rule: VerificationRule
    tree: str

    def __str__(self) -> str:
        return f"{type(self.rule).__name__}-{self.tree}"


PAIRS = [
    Pair(rule, name)
    for rule in rules()
    for name, make in TREES.items()
    if make().draw in rule.lossless_for
]


def decoded(pair: Pair, sampling: Sampling, num_texts: int) -> list[Trace]:
    proposer = DraftModel(table_lm(DRAFT, V), TREES[pair.tree]())
    speculative = decoder(
        proposer,
        rule=pair.rule,
        sampling=sampling,
        stopping=Stopping(LENGTH),
        batch=BATCH,
        seed=100 + PAIRS.index(pair),
    )
    return speculative.decode(requests(num_texts))


def test_every_claim_is_among_the_pairs() -> None:
    """Also that some pairs are tested at all: globbing could find nothing."""
    claimed = {(type(rule), draw) for rule in rules() for draw in rule.lossless_for}
    tested = {(type(pair.rule), TREES[pair.tree]().draw) for pair in PAIRS}
    assert tested == claimed, "a draw without a tree in TREES"
    assert {draw for _, draw in claimed} == set(Draw)


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_texts_have_the_verifiers_joint_distribution(pair: Pair) -> None:
    """Whole texts of two steps and more: a wrong residual, cache or stream would shift them."""
    traces = decoded(pair, Sampling(), NUM_TEXTS)
    _require_drafts(traces, pair)
    assert_fits(traces, text_distribution(TARGET, LENGTH, prompt=PROMPT), str(pair))


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair.tree in NARROWED], ids=str)
def test_texts_have_a_warped_joint_distribution(pair: Pair) -> None:
    """With fewer tokens left than siblings asked for, which is where trees have gaps."""
    traces = decoded(pair, NARROW, NUM_NARROW_TEXTS)
    _require_drafts(traces, pair)
    assert_fits(traces, text_distribution(warped(TARGET, NARROW), LENGTH, prompt=PROMPT), str(pair))


def _require_drafts(traces: Sequence[Trace], pair: Pair) -> None:
    """Refuse to call something tested that hardly happened."""
    assert 1.5 < steps_per_text(traces) < 0.9 * LENGTH, "nothing accepted, or all in one step"
    sizes = {trace.steps[0].drafted for trace in traces}  # later steps have less budget
    if TREES[pair.tree]().draw is Draw.FILTERED:
        assert sizes == {0, 1, 2}, "all or none of the tokens passed the filter"


def test_the_power_is_as_stated() -> None:
    """At T=1 pooling leaves 52 cells of 81, and NARROW has 13 texts in all."""
    assert detectable(NUM_TEXTS, 51) == pytest.approx(0.154, abs=0.001)
    assert detectable(NUM_NARROW_TEXTS, 11) == pytest.approx(0.177, abs=0.001)


# --- negative controls: each must be found ------------------------------------------------------

REUSED = [
    Pair(Block(), "chain"),
    Pair(Rejection(), "without_replacement"),
    Pair(Traversal(), "without_replacement"),
]


@pytest.mark.parametrize("pair", REUSED, ids=str)
def test_noise_used_again_in_the_next_step_is_found(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One table of noise for a whole request, as some engines have had it."""
    rekeyed(monkeypatch, lambda flight, purpose: (flight.request.request_id, purpose))
    proposer = DraftModel(table_lm(DRAFT, V), TREES[pair.tree]())
    wrong = decoder(proposer, rule=pair.rule, stopping=Stopping(LENGTH), batch=BATCH)
    distribution = text_distribution(TARGET, LENGTH, prompt=PROMPT)
    assert_found(
        wrong.decode(requests(NUM_WRONG_TEXTS)), distribution, f"{pair}: noise used in every step"
    )


class _ByPosition(RandomStream):
    """Decides with numbers that belong to positions of the text, whichever step asks for them."""

    def __init__(self, name: str, first: int, stride: int, fresh: RandomStream):
        super().__init__(name)
        self._place = (name, first)
        self._stride = stride
        self._fresh = fresh

    def accept(self, probability: float) -> bool:
        name, position = self._place
        self._place = name, position + self._stride
        return RandomStream(name, position).accept(probability)

    def choose(self, weights: Tensor) -> int:
        return self._fresh.choose(weights)


@pytest.mark.parametrize("rule", [Rejection(), Block()], ids=["rejection", "block"])
def test_noise_keyed_by_position_is_found_with_a_rule_that_looks_ahead(
    rule: VerificationRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rejection asks about no position behind the first refusal, so that it may; block may not.

    A simulation of its own (100 000 texts) gives block here a TV of 0.12 and a chi-square
    divergence of 0.17, on an even distribution of two tokens and a draft that nearly always says
    the second.
    """
    original = Flight.context

    def context(flight: Flight, room: int | None = None) -> Context:
        found = original(flight, room)
        looks_ahead = isinstance(rule, Block)  # asks about the last draft token first
        ahead = min(DEPTH, found.max_depth) - 1 if looks_ahead else 0
        stream = _ByPosition(
            flight.request.request_id,
            len(flight.token_ids) + ahead,
            -1 if looks_ahead else 1,
            found.verify_stream,
        )
        return replace(found, verify_stream=stream)

    monkeypatch.setattr(Flight, "context", context)
    distribution, draft = memoryless(0.5, 0.5), memoryless(0.05, 0.95)
    proposer = DraftModel(table_lm(draft, 2), Chain(DEPTH))
    keyed = decoder(
        proposer,
        verifier=table_lm(distribution, 2),
        rule=rule,
        stopping=Stopping(LENGTH),
        batch=BATCH,
    )
    traces = keyed.decode(requests(NUM_TEXTS, prompt=(0,)))
    if isinstance(rule, Block):
        assert_found(
            traces,
            text_distribution(distribution, LENGTH),
            "block verification with noise by position",
        )
    else:
        assert_fits(
            traces, text_distribution(distribution, LENGTH), "rejection with noise by position"
        )

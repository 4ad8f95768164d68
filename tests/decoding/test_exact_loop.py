"""Whole texts, several steps long, enumerated through the real loop: they are p's to 1e-12.

All random decisions of all steps are enumerated, so cache, rewinding, pruning, budget and end of
text are tested without noise. What this cannot see is noise that is not independent between
decisions: test_lossless_multistep.py decodes with the real streams.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.core.outcome import Outcome
from specdec.core.protocols import Proposer, TreePolicy, VerificationRule
from specdec.core.randomness import RandomStream, Stream
from specdec.core.sampling import Sampling
from specdec.core.values import Context, Draw, Proposal, Verdict
from specdec.decoding import request as request_module
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.proof.enumeration import BranchingStream, outcomes
from specdec.proposer.cascade import Cascade
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.hybrid import Hybrid
from specdec.proposer.ngram import NGram
from specdec.proposer.none import NoProposer
from specdec.proposer.pool import Pool
from specdec.proposer.recorded import Recorded
from specdec.proposer.retrieval import Retrieval
from specdec.proposer.suffix import Suffix
from specdec.testing.table_lm import TableLM
from specdec.tree.best_first import BestFirst
from specdec.tree.chain import Chain
from specdec.verification.block import Block
from specdec.verification.gbv import GreedyMultiPath
from specdec.verification.kseq_block import KSeqBlock
from specdec.verification.match import Match
from specdec.verification.rejection import Rejection
from specdec.verification.top_plus_one import TopPlusOne
from specdec.verification.traversal import Traversal
from tests.support.arms import PROMPT, corpus, decoder
from tests.support.enumerated import written
from tests.support.toy import (
    NO_END,
    ChoosingChain,
    ChoosingFiltered,
    ChoosingTree,
    EnumeratedStream,
    RankedTree,
    TextDistribution,
    Tokens,
    full_context,
    gridded,
    mixture,
    table_lm,
    text_distribution,
    total_variation,
)

EXACT = 1e-12
CELLS = 4  # of the grid on which the distributions of `Chain`'s test lie
TARGET = full_context(11, 1.0)
DRAFT = mixture(TARGET, full_context(12, 1.0), 0.4)
ON_GRID = gridded(13, CELLS)
TEXT = (1, 2, 0, 0, 1, 2)


@dataclass(frozen=True)
class Arm:
    """A proposer, and how long the texts may be for a run of a second or two."""

    name: str
    make: Callable[[], Proposer]
    length: int
    rule: VerificationRule | None = None  # rejection

    def __str__(self) -> str:
        return self.name


FORK = (-1, 0, 0, 2)
PASSES = 0.3  # the probability that a filtered draft token needs


@cache
def without_least(tokens: Tokens) -> Tensor:
    """Leave out the draft's least likely token: fewer branches to enumerate."""
    row = DRAFT(tokens)
    return row * (row > row.min())


def drafting(tree: TreePolicy) -> DraftModel:
    return DraftModel(table_lm(DRAFT), tree)


def forking(draw: Draw) -> DraftModel:
    """Draft two tokens, and one more below the second."""
    return DraftModel(table_lm(without_least), ChoosingTree(FORK, draw))


def two_paths() -> DraftModel:
    """Draft two tokens, and one more below each of them."""
    return DraftModel(table_lm(without_least), ChoosingTree((-1, 0, 0, 1, 2), Draw.PATHS))


def hybrid(kind: type[Hybrid] = Hybrid) -> Hybrid:
    """Mix candidates that are copied with drawn ones: two draws in one text."""
    return kind([NGram(2, max_ngram=2), drafting(ChoosingChain(1))], costs=[0, 0.2])


def cascade(inner: Proposer) -> Cascade:
    return Cascade(table_lm(DRAFT), inner, Rejection(), Chain(2))


ARMS = [
    Arm("none", NoProposer, 5),
    Arm("ngram", lambda: NGram(3, max_ngram=2), 5),
    Arm("suffix_tree", lambda: Suffix(2, num_nodes=3), 5),
    Arm("retrieval", lambda: Retrieval(corpus(), 2, min_matched=1, num_nodes=3), 5),
    Arm("pool", lambda: Pool(2), 5),
    Arm("hybrid", hybrid, 4),
    Arm("hybrid_match", hybrid, 4, Match()),
    Arm("hybrid_pool", lambda: Hybrid([Pool(2), drafting(ChoosingChain(1))]), 4),
    Arm("hybrid_merged", lambda: Hybrid([Suffix(2), RankedTree(FORK, DRAFT)], mode="merge"), 5),
    Arm("draft_model", lambda: DraftModel(table_lm(DRAFT), ChoosingChain(2)), 3),
    Arm("draft_model_gamma_3", lambda: DraftModel(table_lm(DRAFT), ChoosingChain(3)), 3),
    Arm("draft_model_chain", lambda: DraftModel(table_lm(ON_GRID), Chain(2)), 3),
    Arm("recorded", lambda: Recorded({"a": TEXT, "b": TEXT}, 2, accuracy=0.5), 3),
    Arm("ranked_tree_2_2", lambda: RankedTree((-1, 0, 0, 1, 1, 2, 2), DRAFT), 5),
    Arm("ranked_tree_uneven", lambda: RankedTree((-1, 0, 0, 2, 2, 3, 5), DRAFT), 5),
    Arm("best_first", lambda: drafting(BestFirst(4, 2)), 5),
    Arm("best_first_match", lambda: drafting(BestFirst(4, 2, min_gain=0.1)), 5, Match()),
    Arm("chain_block", lambda: drafting(ChoosingChain(2)), 3, Block()),
    Arm("filtered", lambda: drafting(ChoosingFiltered(2, PASSES)), 3),
    Arm("filtered_block", lambda: drafting(ChoosingFiltered(2, PASSES)), 3, Block()),
    Arm("cascade", lambda: cascade(NGram(2, max_ngram=2)), 3),
    Arm("cascade_block", lambda: cascade(NGram(1, max_ngram=1)), 3, Block()),
    Arm("iid", lambda: forking(Draw.IID), 3),
    Arm("paths_gbv", two_paths, 3, GreedyMultiPath()),
    Arm("paths_kseq_block", two_paths, 3, KSeqBlock()),
    Arm("iid_traversal", lambda: forking(Draw.IID), 3, Traversal()),
    Arm("without_replacement", lambda: forking(Draw.WITHOUT_REPLACEMENT), 3),
    Arm("without_replacement_match", lambda: forking(Draw.WITHOUT_REPLACEMENT), 3, Match()),
    Arm("without_replacement_traversal", lambda: forking(Draw.WITHOUT_REPLACEMENT), 3, Traversal()),
    Arm("top_plus_one", lambda: forking(Draw.TOP_PLUS_ONE), 3, TopPlusOne()),
]
# Its longer texts take ten times as many plays.
FULL = Arm(
    "draft_model_full", lambda: DraftModel(table_lm(DRAFT, max_length=8), ChoosingChain(2)), 4
)


# The arms whose texts are enumerated with a processor, too: each kind of draw and each rule once.
PATHS = (
    *("none", "ngram", "draft_model", "ranked_tree_uneven", "chain_block", "filtered", "iid"),
    *("cascade_block",),
    *("without_replacement_traversal", "top_plus_one"),
)


ENUMERATED = partial(EnumeratedStream, cells=CELLS)


@pytest.fixture
def enumerate_streams(monkeypatch: pytest.MonkeyPatch) -> Callable[[BranchingStream], None]:
    """Return a function that makes all streams of the next run branch."""

    def patch(branching: BranchingStream) -> None:
        stream = ENUMERATED(branching)
        monkeypatch.setattr(request_module, "RandomStream", lambda *key: stream)

    return patch


def loop_distribution(proposer: Proposer, stopping: Stopping, **parts: Any) -> TextDistribution:
    """Return the exact distribution of what the decoder emits for one request."""
    return written(decoder(proposer, TARGET, stopping=stopping, **parts), PROMPT, ENUMERATED)


@pytest.mark.parametrize(
    "ends",
    [pytest.param(NO_END, marks=pytest.mark.thorough), frozenset({1})],
    ids=["endless", "ends"],
)
@pytest.mark.parametrize("arm", [*ARMS, pytest.param(FULL, marks=pytest.mark.thorough)], ids=str)
def test_the_loop_has_exactly_the_verifiers_distribution(arm: Arm, ends: frozenset[int]) -> None:
    found = loop_distribution(arm.make(), Stopping(arm.length, ends), rule=arm.rule)
    expected = text_distribution(TARGET, arm.length, ends, PROMPT)
    bias = total_variation(found, expected)
    assert bias < EXACT, f"TV {bias:.3e}: with {arm} the text's distribution is not the verifier's"


class ChoosingAfterwards(Hybrid):
    """Looks at the drawn tokens, and copies where they are the ones that would be copied."""

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """Ask both, and choose then."""
        copied, drawn = (part.propose(contexts) for part in self.parts)
        for context in contexts:
            self._rows[context.row].begin(context)
            self._rows[context.row].chosen = 1
            self._rows[context.row].proposed = {1: drawn[0]}
        alike = copied[0].tree.token_ids[:2] == drawn[0].tree.token_ids[:2]
        return [copied[0] if alike else drawn[0]]


def test_to_choose_by_what_was_drawn_is_found() -> None:
    """What is left of the draws has another distribution than the one it was drawn from."""
    proposer = hybrid(ChoosingAfterwards)
    found = loop_distribution(proposer, Stopping(3))
    assert total_variation(found, text_distribution(TARGET, 3, NO_END, PROMPT)) > 0.01


def test_both_parts_of_the_hybrid_draft(
    enumerate_streams: Callable[[BranchingStream], None],
) -> None:
    """Or its exact distribution would say nothing about mixtures of draws."""
    speculative = decoder(hybrid(), TARGET, stopping=Stopping(4))
    drawn, copied = set[int](), set[int]()

    def play(branching: BranchingStream) -> Tokens:
        enumerate_streams(branching)
        (trace,) = speculative.decode([Request("a", PROMPT)])
        calls = {number: step.draft_calls for number, step in enumerate(trace.steps)}
        drawn.update(number for number, each in calls.items() if each)
        copied.update(n for n, each in calls.items() if not each and trace.steps[n].drafted)
        return trace.output_ids

    outcomes(play)
    assert drawn & {0, 1}
    assert copied


def less_of_the_last(input_ids: Tensor, scores: Tensor) -> Tensor:
    """A processor that looks at the path: what came is less likely, the more so the later."""
    length = input_ids.shape[1]
    for place in range(length):
        weight = 1.5 * (place + 1) / length
        scores = scores.scatter_add(
            1, input_ids[:, place, None], torch.full_like(scores[:, :1], -weight)
        )
    return scores


@cache
def processed_target(tokens: Tokens) -> Tensor:
    """Return what a text is drawn from whose logits are processed."""
    logits = TARGET(tokens).log()[None]
    return less_of_the_last(torch.tensor([list(tokens)]), logits).softmax(dim=-1)[0]


@pytest.mark.thorough
@pytest.mark.parametrize("ends", [NO_END, frozenset({1})], ids=["endless", "ends"])
@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.name in PATHS], ids=str)
def test_processors_see_the_path_of_each_node(arm: Arm, ends: frozenset[int]) -> None:
    """So the text has exactly the processed distribution, whatever the tree and the rule."""
    options = {"sampling": Sampling(processors=[less_of_the_last]), "rule": arm.rule}
    found = loop_distribution(arm.make(), Stopping(arm.length, ends), **options)
    expected = text_distribution(processed_target, arm.length, ends, PROMPT)
    assert total_variation(expected, text_distribution(TARGET, arm.length, ends, PROMPT)) > 0.05
    bias = total_variation(found, expected)
    assert bias < EXACT, f"TV {bias:.3e}: with {arm} the text's distribution is another"


def test_two_requests_in_one_batch_are_independent(
    enumerate_streams: Callable[[BranchingStream], None],
) -> None:
    """The joint distribution of two texts decoded together is the product of their own."""
    prompts: dict[str, Tokens] = {"a": PROMPT, "b": (2,)}
    speculative = decoder(
        DraftModel(table_lm(DRAFT), ChoosingChain(1)), TARGET, stopping=Stopping(2), batch=2
    )

    def play(branching: BranchingStream) -> tuple[Tokens, Tokens]:
        enumerate_streams(branching)
        first, second = speculative.decode([Request(*item) for item in prompts.items()])
        return first.output_ids, second.output_ids

    found = outcomes(play)
    first, second = (text_distribution(TARGET, 2, prompt=prompt) for prompt in prompts.values())
    for a, mass_a in first.items():
        for b, mass_b in second.items():
            assert found.get((a, b), 0.0) == pytest.approx(mass_a * mass_b, abs=EXACT), (
                f"texts {a} and {b} of two requests in flight are not independent"
            )


@pytest.mark.parametrize(
    ("tree", "rule"),
    [
        (ChoosingChain(2), Block()),
        (ChoosingFiltered(2, PASSES), Rejection()),
        (ChoosingTree(FORK, Draw.WITHOUT_REPLACEMENT), Traversal()),
    ],
    ids=["chain_block", "filtered", "without_replacement_traversal"],
)
def test_a_neighbour_with_more_budget_changes_nothing(
    tree: TreePolicy, rule: VerificationRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tree is grown for the neighbour's sake deeper than the request can use, and cut.

    What was drawn below the cut must leave no trace, nor must that something was withheld there.
    """
    context = len(PROMPT) + 2
    verifier = table_lm(TARGET, max_length=context)
    neighbour = Request("neighbour", (2,))
    speculative = decoder(
        drafting(tree), verifier=verifier, rule=rule, stopping=Stopping(3), batch=2
    )

    def play(branching: BranchingStream) -> Tokens:
        stream = EnumeratedStream(branching)
        monkeypatch.setattr(
            request_module,
            "RandomStream",
            lambda seed, name, *key: stream if name == "a" else RandomStream(seed, name, *key),
        )
        return speculative.decode([Request("a", PROMPT), neighbour])[0].output_ids

    bias = total_variation(outcomes(play), text_distribution(TARGET, 2, prompt=PROMPT))
    assert bias < EXACT, f"TV {bias:.3e}: what a neighbour may still emit changes the text"


# --- negative controls: each must be found ------------------------------------------------------


class _CorrectionFromP(Rejection):
    """Draws the correction from p instead of the residual."""

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        verdict = super().verify(proposal, verifier_probs, stream)
        if verdict.outcome is not Outcome.RECOVERED:
            return verdict
        return replace(verdict, next_token=stream.choose(verifier_probs[len(verdict.path)]))


class _ForgetfulRewind(TableLM):
    """Leaves the first rejected cell in the cache."""

    def keep(self, row: int, prefix: int, nodes: Sequence[int] = ()) -> None:
        stale = [len(nodes)] if nodes and prefix + len(nodes) < self.length(row) else []
        super().keep(row, prefix, [*nodes, *stale])


class _WrongRewind(TableLM):
    """Keeps the root once more instead of the last accepted cell."""

    def keep(self, row: int, prefix: int, nodes: Sequence[int] = ()) -> None:
        super().keep(row, prefix, [*nodes[:-1], 0] if nodes else nodes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": _CorrectionFromP(), "allow_lossy": True},
        {"verifier": _ForgetfulRewind(table_lm(TARGET)._logits_after, 3)},
        {"verifier": _WrongRewind(table_lm(TARGET)._logits_after, 3)},
    ],
    ids=["correction-from-p", "rejected-cell-kept", "wrong-cell-kept"],
)
def test_a_wrong_loop_is_found(wrong: dict[str, Any]) -> None:
    proposer = DraftModel(table_lm(DRAFT), ChoosingChain(2))
    found = loop_distribution(proposer, Stopping(3), **wrong)
    bias = total_variation(found, text_distribution(TARGET, 3, prompt=PROMPT))
    assert bias > 1e-3, f"TV {bias:.1e}: the enumeration of the loop is blind to this bug"

"""Hybrids: who is asked, what each part is told, and which candidates come of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

import specdec as sd
from specdec.core.errors import Unfit, UserError
from specdec.core.outcome import Outcome
from specdec.core.protocols import Proposer
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree
from specdec.core.values import CandidateSource, Context, Draw, Layer, Proposal, Verdict
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.proposer.hybrid import Hybrid
from specdec.proposer.merging import followed, merged
from specdec.proposer.ngram import NGram
from specdec.proposer.none import NoProposer
from specdec.proposer.outlook import Outlook, believed, trust_in_copies
from specdec.proposer.pool import Pool
from specdec.proposer.suffix import Suffix
from specdec.testing import check_proposer
from specdec.tree.chain import Chain
from specdec.tree.sparse import Sparse
from specdec.verification.block import Block
from specdec.verification.rejection import Rejection
from tests.support import asking
from tests.support.arms import DRAFT, PROMPT, TARGET, V, decoder, requests
from tests.support.each_proposer import PROPOSERS
from tests.support.families import noisy_copy, tiny_model
from tests.support.joint_distribution import assert_fits
from tests.support.toy import RankedTree, table_lm, text_distribution

# Copies are trusted as they stand at temperature 0.
context = partial(asking.context, sampling=Sampling(0.0))


class Scripted:
    """A part that notes all that it is told, and proposes the same chain again and again."""

    source = None
    draw = Draw.DETERMINISTIC

    def __init__(self, chain: Sequence[int], layers: Sequence[Layer] = ()):
        self._chain = chain
        self.layers = layers
        self.max_depth = len(chain)
        self.contexts: list[Context] = []
        self.updates: list[tuple[list[int], Verdict]] = []

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        """Nothing to prepare."""

    def reset(self, contexts: Sequence[Context]) -> None:
        """Nothing to forget."""

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        self.contexts += contexts
        trees = [CandidateTree.chain(each.token_ids[-1], self._chain) for each in contexts]
        return [Proposal(tree, num_draft_calls=len(self._chain)) for tree in trees]

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        pairs = zip(contexts, verdicts, strict=True)
        self.updates += [(list(each.token_ids), verdict) for each, verdict in pairs]


class Copied(Scripted):
    """The same, as a part that is looked up."""

    source = CandidateSource.TEXT


def step(hybrid: Hybrid, begun: Context, emitted: Sequence[int]) -> tuple[Proposal, Context]:
    """Take a step at which a text goes on as it does."""
    (proposal,) = hybrid.propose([begun])
    path = followed(proposal.tree, emitted[:-1])
    text = [*begun.token_ids, *emitted[: len(path) + 1]]
    grown = replace(begun, token_ids=text)
    below = proposal.tree.children[path[-1] if path else 0]
    outcome = Outcome.RECOVERED if below else Outcome.BONUS
    hybrid.update([grown], [Verdict(tuple(path), text[-1], outcome)])
    return proposal, grown


def opened(hybrid: Hybrid, begun: Context) -> Hybrid:
    hybrid.open(1, 100, 100)
    hybrid.reset([begun])
    return hybrid


def test_a_part_whose_copies_fail_is_left_for_one_that_drafts() -> None:
    """And is taken again when the text follows it, though it was not shown meanwhile."""
    copies, drafts = Copied([1, 1, 1]), Scripted([2])
    begun = context([0])
    hybrid = opened(Hybrid([copies, drafts]), begun)
    shown: list[int] = []
    for token in [5] * 4 + [1] * 24:
        proposal, begun = step(hybrid, begun, [token] * 4)
        shown.append(proposal.tree.token_ids[1])
    assert shown[0] == 1, "three copies promise more than one draft token"
    assert 2 in shown[1:5]
    assert shown[-1] == 1


def test_a_part_that_drafts_is_asked_only_when_it_is_chosen() -> None:
    copies, drafts = Copied([1, 1, 1]), Scripted([2])
    begun = context([0])
    hybrid = opened(Hybrid([copies, drafts]), begun)
    for _ in range(5):
        _, begun = step(hybrid, begun, [1, 1, 1, 1])
    assert len(copies.contexts) == 5
    assert drafts.contexts == drafts.updates == []


def test_costs_are_held_against_what_is_promised() -> None:
    for costs, token in (([0, 0], 2), ([0, 5], 1)):
        hybrid = opened(Hybrid([Copied([1]), Scripted([2, 2])], costs=costs), context([0]))
        (proposal,) = hybrid.propose([context([0])])
        assert proposal.tree.token_ids[1] == token
    idle = opened(Hybrid([NoProposer(), Scripted([2, 2])], costs=[0, 5]), context([0]))
    (proposal,) = idle.propose([context([0])])
    assert not proposal.has_candidates, "too dear a draft is worse than none"


def test_each_part_is_told_of_the_text_as_far_as_it_had_foreseen_it() -> None:
    """Its caches may hold tokens of its own candidates, which the text does not have."""
    first, second = Scripted([1, 2, 3]), Scripted([1, 7])
    begun = context([0])
    hybrid = opened(Hybrid([first, second], mode="merge"), begun)
    proposal, _ = step(hybrid, begun, [1, 2, 3, 9])
    assert proposal.tree == CandidateTree((0, 1, 2, 7, 3), (-1, 0, 1, 1, 2))
    assert proposal.num_draft_calls == 5
    assert [(text, verdict.path) for text, verdict in first.updates] == [
        ([0, 1, 2, 3, 9], (1, 2, 3))
    ]
    assert [(text, verdict.path) for text, verdict in second.updates] == [([0, 1, 2], (1,))]
    assert second.updates[0][1].next_token == 2


def test_hidden_states_wait_until_they_are_read() -> None:
    copies, heads = Copied([1, 1, 1, 1]), Scripted([2], layers=["final"])
    begun = replace(context([0]), features={"final": torch.tensor([[0.0]])})
    hybrid = opened(Hybrid([copies, heads]), begun)
    assert list(hybrid.layers) == ["final"]
    number = 0
    while not heads.contexts:
        assert number < 12, "the heads were never asked"
        number += 1
        _, begun = step(hybrid, begun, [5])
        begun = replace(begun, features={"final": torch.tensor([[float(number)]])})
    (shown,) = heads.contexts
    assert shown.features["final"].flatten().tolist() == [float(n) for n in range(number)]
    assert number > 1


def test_a_pool_looks_on_what_others_propose() -> None:
    pool = Pool(2)
    begun = context([0])
    hybrid = opened(Hybrid([pool, Scripted([6, 7, 8])]), begun)
    proposal, begun = step(hybrid, begun, [9])
    assert proposal.tree.token_ids == (0, 6, 7, 8)
    (proposal,) = hybrid.propose([replace(begun, token_ids=[*begun.token_ids, 6])])
    assert hybrid._rows[0].proposed[0].tree.token_ids == (6, 7, 8)


def test_merged_trees_share_their_paths() -> None:
    first = CandidateTree((0, 1, 2), (-1, 0, 1))
    second = CandidateTree((0, 3, 1, 2, 4), (-1, 0, 0, 2, 3))
    assert merged([first, second], None) == CandidateTree((0, 1, 3, 2, 4), (-1, 0, 0, 1, 3))
    assert merged([first, second], 2) == CandidateTree((0, 1, 3), (-1, 0, 0))


def test_predictions_follow_what_happens() -> None:
    """From the rule of succession to what matches of this length came to, and no further."""
    outlook = Outlook()
    assert outlook.expected(1, 2) == pytest.approx(2 / 3 + 2 / 4)
    assert outlook.expected(0, 0) == 0
    for _ in range(60):
        outlook.learn(1, 2, 0)
        outlook.learn(9, 2, 2)
    assert outlook.expected(1, 2) < 0.25
    assert outlook.expected(9, 2) > 1.7
    assert believed(None, 2) == pytest.approx(0.6 + 0.36)


MAKE: dict[str, Callable[[], Hybrid]] = {
    "switch": lambda: Hybrid([NGram(2), sd.DraftModel(table_lm(DRAFT, V), Chain(2))]),
    "priced": lambda: Hybrid(
        [Suffix(2), sd.DraftModel(table_lm(DRAFT, V), Chain(2))], costs=[0.5, 0]
    ),
    "three": lambda: Hybrid(
        [NGram(2), Pool(3), sd.DraftModel(table_lm(DRAFT, V), Sparse([[0], [1], [0, 0]]))]
    ),
    "merge": lambda: Hybrid(
        [Suffix(2), sd.DraftModel(table_lm(DRAFT, V), Sparse([[0], [0, 0]]))], mode="merge"
    ),
}


@pytest.mark.parametrize("name", MAKE)
def test_it_keeps_its_protocol(name: str) -> None:
    """Ragged batches, rows that leave and enter, greedy texts: as of any proposer."""
    check_proposer(MAKE[name], table_lm(TARGET, V))


@pytest.mark.parametrize("name", ["switch", "three", "merge"])
def test_texts_have_the_verifiers_joint_distribution(name: str) -> None:
    """With the decoder's own streams, over several steps."""
    lossless = decoder(MAKE[name](), rule=Rejection(), stopping=Stopping(4), batch=64)
    assert lossless.lossless
    assert_fits(lossless.decode(requests(1000)), text_distribution(TARGET, 4, prompt=PROMPT), name)


def test_a_rule_must_take_the_draws_of_all_parts() -> None:
    hybrid = MAKE["switch"]()
    assert hybrid.draw == {Draw.DETERMINISTIC, Draw.SINGLE}
    with pytest.raises(Unfit, match="block: cannot decide on deterministic candidates"):
        decoder(hybrid, rule=Block())
    assert MAKE["three"]().draw is Draw.DETERMINISTIC


@pytest.mark.parametrize(
    ("mode", "other"),
    [
        *(("switch", name) for name in ("draft_model", "draft_tree", "medusa", "chained")),
        *(("merge", name) for name in ("draft_tree", "medusa")),
    ],
)
def test_greedy_texts_are_the_verifiers_own(mode: str, other: str) -> None:
    """Caches of models and of heads stay in step with the text, asked or not, chosen or not."""
    model = tiny_model("llama")
    verifier, draft = sd.HFCausalLM(model), sd.HFCausalLM(noisy_copy(model))
    parts: list[Proposer] = [Suffix(3), PROPOSERS[other](verifier, draft)]
    stopping = Stopping(24)
    texts_of = [Request(str(n), [1 + n, 2, 3, 1 + n, 2][: 5 - n]) for n in range(4)]

    def texts(proposer: Proposer, batch: int) -> list[tuple[int, ...]]:
        parts = (verifier, proposer, Rejection(), Sampling(0.0), stopping, batch)
        return [trace.output_ids for trace in sd.SpeculativeDecoder(*parts).decode(texts_of)]

    expected = texts(NoProposer(), 1)
    for batch in (1, 3):
        assert texts(Hybrid(parts, mode=mode), batch) == expected


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"parts": [NGram(2)]}, "expected two proposers or more"),
        ({"parts": "ngram"}, "parts='ngram': expected two proposers"),
        ({"parts": [NGram(2), 3]}, "no proposer"),
        ({"mode": "both"}, "mode='both': expected switch or merge"),
        ({"costs": [1]}, r"costs=\[1\]: expected a number for each of 2 parts"),
        ({"costs": [1, -1]}, "costs=-1: expected a number >= 0"),
        ({"costs": [1, 1], "mode": "merge"}, "expected null: a merged tree"),
        ({"num_nodes": 3}, "num_nodes=3: expected null"),
        ({"num_nodes": 0, "mode": "merge"}, "num_nodes=0: expected an integer"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Hybrid(**{"parts": [NGram(2), Suffix(2)], **options})


def test_a_part_comes_once() -> None:
    part = NGram(2)
    with pytest.raises(UserError, match="each once"):
        Hybrid([part, part])


def test_what_is_drawn_cannot_be_merged() -> None:
    drafting = sd.DraftModel(table_lm(DRAFT, V), Chain(2))
    with pytest.raises(Unfit, match="mode='merge': single candidates keep their distribution only"):
        Hybrid([Suffix(2), drafting], mode="merge")
    Hybrid([Suffix(2), RankedTree((-1, 0), DRAFT)], mode="merge")


def test_copies_are_trusted_less_where_tokens_are_drawn() -> None:
    certain, drawn = (Outlook(trust_in_copies(temperature)) for temperature in (0.0, 1.0))
    assert certain.expected(2, 3) == pytest.approx(believed(2, 3))
    assert drawn.expected(2, 3) == pytest.approx(believed(2, 3) / 3)
    for _ in range(100):
        drawn.learn(2, 3, 3)
    assert drawn.expected(2, 3) > 2.5

"""Judges: rules that see every proposal, decide nothing, and say what they would have accepted."""

from collections.abc import Mapping

import pytest
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.protocols import TreePolicy, VerificationRule
from specdec.core.randomness import RandomStream, Stream
from specdec.core.sampling import Sampling
from specdec.core.trace import Step, Trace
from specdec.core.values import Proposal, Verdict
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.stopping import Stopping
from specdec.metrics import Tally, summarize
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.ngram import NGram
from specdec.tree.chain import Chain
from specdec.tree.dynamic import Dynamic
from specdec.tree.sampled import Sampled
from specdec.verification.block import Block
from specdec.verification.kseq import KSeq
from specdec.verification.match import Match
from specdec.verification.rejection import Rejection
from specdec.verification.top_plus_one import TopPlusOne
from specdec.verification.traversal import Traversal
from specdec.verification.typical import Typical
from tests.support.arms import DRAFT, TARGET, V, requests
from tests.support.toy import table_lm

CHAIN = Chain(4)
TREES = {
    "chain": CHAIN,
    "iid": Sampled([2, 2], "iid"),
    "without_replacement": Sampled([2, 2], "without_replacement"),
    "top_plus_one": Sampled([2, 2], "top_plus_one"),
    "dynamic": Dynamic(num_nodes=5, max_depth=3, beam=2),
}
RULES: Mapping[str, VerificationRule] = {
    "rejection": Rejection(),
    "match": Match(),
    "block": Block(),
    "traversal": Traversal(),
    "kseq": KSeq(),
    "top_plus_one": TopPlusOne(),
    "typical": Typical(),
}
PAIRS = [
    (tree, rule)
    for tree, policy in TREES.items()
    for rule, decider in RULES.items()
    if policy.draw in decider.defined_for
]


def decode(
    tree: TreePolicy,
    rule: VerificationRule,
    judges: Mapping[str, VerificationRule] | None,
    num: int = 3,
    batch: int = 2,
) -> list[Trace]:
    """Decode 24 tokens for each of a few toy requests."""
    proposer = DraftModel(table_lm(DRAFT, V), tree)
    verifier, stopping = table_lm(TARGET, V), Stopping(24)
    decoder = SpeculativeDecoder(
        verifier, proposer, rule, Sampling(1.0), stopping, batch, 0, allow_lossy=True, judges=judges
    )
    return decoder.decode(requests(num))


def steps(traces: list[Trace]) -> list[Step]:
    return [step for trace in traces for step in trace.steps]


@pytest.mark.parametrize(("tree", "rule"), PAIRS, ids=lambda value: str(value))
def test_the_deciding_rule_as_its_own_judge_differs_by_exactly_nothing(tree: str, rule: str):
    """Whatever its noise, and for every draw: E[A] is a function of the candidates alone."""
    traces = decode(TREES[tree], RULES[rule], {"same": type(RULES[rule])()})
    assert all(step.judged == {"same": step.expected_accepted} for step in steps(traces))
    summary = summarize(Tally.of(traces))
    said = summary["judged"]["same"]
    assert said["expected_accepted"] == summary["expected_accepted"]
    assert said["difference"]["value"] == 0.0
    assert said["expected_accepted"]["value"] > 0, "nothing was judged"


def test_block_accepts_at_least_what_token_level_rejection_does_on_every_chain():
    """Sun et al. 2025, theorem 2, here of each single proposal; and somewhere it is more."""
    judged = [
        {name: value or 0.0 for name, value in step.judged.items()}
        for step in steps(decode(CHAIN, Rejection(), RULES_OF_CHAINS, num=40))
    ]
    assert len(judged) > 300
    # Six digits are kept.
    assert all(each["block"] >= each["rejection"] - 1e-6 for each in judged)
    assert any(each["block"] > each["rejection"] + 0.01 for each in judged)
    assert all(each["match"] <= 4 for each in judged)


RULES_OF_CHAINS = {"rejection": Rejection(), "block": Block(), "match": Match()}


@pytest.mark.parametrize("batch", [1, 3])
def test_judges_change_no_text(batch: int):
    """Neither by their noise nor by writing into what they are shown."""
    judges = {name: RULES[name] for tree, name in PAIRS if tree == "chain"}
    alone, judged = (decode(CHAIN, Block(), each, batch=batch) for each in (None, judges))
    assert [t.output_ids for t in judged] == [t.output_ids for t in alone]
    assert all(step.judged.keys() == judges.keys() for step in steps(judged))
    assert all(step.judged == {} for step in steps(alone))


def test_a_batch_is_judged_like_single_requests():
    single, batched = (decode(CHAIN, Rejection(), RULES_OF_CHAINS, batch=n) for n in (1, 3))
    assert [s.judged for s in steps(single)] == [s.judged for s in steps(batched)]


class _Noted(Rejection):
    """Writes down the first number of every stream that it is given."""

    def __init__(self) -> None:
        self.numbers: list[float] = []

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        assert isinstance(stream, RandomStream)
        self.numbers.append(stream.uniform())
        return super().verify(proposal, verifier_probs, stream)


def test_judges_have_noise_of_their_own():
    """Shared noise would tie what a judge does to what became text."""
    deciding, first, second = _Noted(), _Noted(), _Noted()
    decode(CHAIN, deciding, {"first": first, "second": second})
    numbers = [*deciding.numbers, *first.numbers, *second.numbers]
    assert len(set(numbers)) == len(numbers) == 3 * len(first.numbers) > 0


def test_a_judge_that_is_not_for_such_candidates_is_refused():
    with pytest.raises(UserError, match="judges=block: cannot decide on without_replacement"):
        decode(TREES["without_replacement"], Rejection(), {"block": Block()})


def test_a_judge_need_not_be_lossless():
    """It decides nothing, so nothing is lost and nothing has to be allowed."""
    decoder = SpeculativeDecoder(
        table_lm(TARGET, V), NGram(2), Rejection(), judges={"typical": Typical()}
    )
    assert decoder.lossless

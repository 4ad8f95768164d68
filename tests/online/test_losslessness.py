"""A proposer that learns leaves the text alone: its q is what each token was drawn from."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from specdec.core.errors import UserError
from specdec.core.protocols import VerificationRule
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.core.values import Context, Proposal
from specdec.decoding.request import Request
from specdec.online.learner import Distiller
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.none import NoProposer
from specdec.tree.chain import Chain
from specdec.tree.paths import WholePaths
from specdec.tree.sampled import Sampled
from specdec.verification.block import Block
from specdec.verification.gbv import GreedyMultiPath
from specdec.verification.kseq import KSeq
from specdec.verification.kseq_block import KSeqBlock
from specdec.verification.traversal import Traversal
from tests.online.learning import (
    BESIDE,
    GAMMA,
    V,
    decoder,
    draft_model,
    model,
    proposers,
    requests,
    taught,
    verifier,
)
from tests.support.families import plain_logits, random_ids
from tests.support.joint_distribution import assert_fits, assert_found, steps_per_text
from tests.support.toy import TextDistribution, Tokens, text_distribution

PROMPT: Tokens = (0, 2, 1, 1)
LENGTH = 5
NUM_TEXTS = 1000
BATCH = 40  # so many texts share weights that change with every step


def exact() -> TextDistribution:
    def after(text: Tokens) -> Tensor:
        return plain_logits(model(), text)[-1].softmax(dim=-1)

    return text_distribution(after, LENGTH, prompt=PROMPT)


def sampled(
    proposer: Any,
    learner: Distiller,
    allow_lossy: bool = False,
    rule: VerificationRule | None = None,
) -> list[Trace]:
    speculative = decoder(
        verifier(),
        proposer,
        learner,
        length=LENGTH,
        batch=BATCH,
        allow_lossy=allow_lossy,
        rule=rule,
    )
    return speculative.decode(requests(NUM_TEXTS, PROMPT))


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{}, {"swap": "request"}, {"every": 2, "delay": 1}])
@pytest.mark.parametrize("name", ["draft_model", "medusa", "chained"])
def test_texts_have_the_verifiers_joint_distribution(name: str, options: dict[str, Any]) -> None:
    of = verifier()
    proposer = proposers(of)[name]
    learner = taught(proposer, of, **options)
    traces = sampled(proposer, learner)
    assert steps_per_text(traces) >= 2
    assert learner.num_updates > 50 // options.get("every", 1)
    assert_fits(traces, exact(), f"{name} that learns, {options}")


RULES = {
    "block": (Chain(GAMMA), Block()),
    "traversal": (Sampled([2, 1], "without_replacement"), Traversal()),
    "kseq": (Sampled([2, 1], "iid"), KSeq()),
    "gbv": (WholePaths(2, GAMMA), GreedyMultiPath()),
    "kseq_block": (WholePaths(2, GAMMA), KSeqBlock()),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", RULES)
def test_so_they_have_under_rules_that_judge_whole_blocks(name: str) -> None:
    """These look further ahead than one token; weights change between blocks alone."""
    tree, rule = RULES[name]
    of, proposer = verifier(), draft_model(tree=tree)
    learner = taught(proposer, of, swap="step")
    traces = sampled(proposer, learner, rule=rule)
    assert learner.num_updates > 50
    assert_fits(traces, exact(), f"a draft that learns, under {name}")


class LaterQ:
    """A planted fault: tokens are drawn with old weights, and q is said to be that of new ones."""

    def __init__(self, inner: DraftModel, later: nn.Module):
        self._inner = inner
        self._later = later

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        return [
            self._recomputed(context, proposal)
            for context, proposal in zip(contexts, self._inner.propose(contexts), strict=True)
        ]

    def _recomputed(self, context: Context, proposal: Proposal) -> Proposal:
        if proposal.draft_probs is None or not proposal.tree.num_draft_tokens:
            return proposal
        text = [*context.token_ids, *proposal.tree.token_ids[1:]]
        logits = self._later(input_ids=torch.tensor([text]), use_cache=False).logits[0]
        rows = logits[len(context.token_ids) - 1 :][: len(proposal.draft_probs)]
        return replace(proposal, draft_probs=context.sampling.warp(rows))


@pytest.mark.thorough
def test_q_that_is_computed_again_after_a_swap_is_found() -> None:
    of, proposer = verifier(), draft_model()
    learner = taught(proposer, of, swap="request")
    later = LaterQ(proposer, learner._student.trained)
    learner._hand_over = lambda: None  # what is learned is never drafted with, only said to be
    with pytest.raises(UserError, match="its tokens are not drawn from its draft_probs"):
        sampled(later, learner)
    assert_found(sampled(later, learner, allow_lossy=True), exact(), "q of other weights")


@pytest.mark.parametrize("options", [{}, BESIDE])
def test_weights_stay_between_a_proposal_and_its_verification(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    of, proposer = verifier(), draft_model()
    learner = taught(proposer, of, **options)
    weights = learner._student.drafting
    speculative = decoder(of, proposer, learner, length=12)
    seen: list[tuple[str, float]] = []

    def noting(name: str) -> None:
        original = getattr(speculative, name)

        def noted(*args: object) -> object:
            found = original(*args)
            seen.append(
                (name, sum(float(weight.double().sum()) for weight in weights.parameters()))
            )
            return found

        monkeypatch.setattr(speculative, name, noted)

    for name in ("_propose", "_verifier_probs", "_commit"):
        noting(name)
    speculative.decode(requests(3, PROMPT))
    steps = [[value for _, value in seen[start : start + 3]] for start in range(0, len(seen), 3)]
    assert all(len(set(step)) == 1 for step in steps)
    least = len(steps) // (2 * options.get("every", 1))
    assert len({step[0] for step in steps}) > least, "the weights do not change at all"


@pytest.mark.parametrize("options", [{}, BESIDE])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["draft_model", "medusa", "chained"])
def test_greedy_texts_are_those_of_generate(name: str, batch: int, options: dict[str, Any]) -> None:
    """Prompts of unlike lengths: rows leave and enter at unlike times."""
    size = 40
    of = verifier(size)
    proposer = proposers(of)[name]
    learner = taught(proposer, of, **options)
    wanted = [
        Request(str(n), random_ids(3 + 4 * n, n, size), max_new_tokens=6 + 3 * n) for n in range(5)
    ]
    traces = decoder(of, proposer, learner, 0.0, 24, batch).decode(wanted)
    assert learner.num_updates > 10 // options.get("every", 1)
    generate: Any = model(size).generate
    for request, trace in zip(wanted, traces, strict=True):
        prompt = torch.tensor([request.token_ids])
        whole = generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=request.max_new_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert isinstance(whole, Tensor)
        assert list(trace.output_ids) == whole[0, len(request.token_ids) :].tolist()


def test_trees_of_a_learning_draft_write_the_same() -> None:
    from specdec.tree.sparse import Sparse

    size = 40
    of, proposer = verifier(size), draft_model(size, Sparse([[0], [1], [0, 0]]))
    wanted = requests(2, random_ids(6, 1, size))
    learning = decoder(of, proposer, taught(proposer, of), 0.0, 16).decode(wanted)
    plain = decoder(verifier(size), NoProposer(), None, 0.0, 16).decode(wanted)
    assert [trace.output_ids for trace in learning] == [trace.output_ids for trace in plain]


def test_sampling_is_as_in_the_text() -> None:
    """`Sampling` of the tests above is plain, so that `exact` is right."""
    assert Sampling(1.0).warp(torch.zeros(1, V)).tolist() == [[pytest.approx(1 / V)] * V]

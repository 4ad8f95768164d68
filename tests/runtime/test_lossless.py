"""Texts of programs have the verifier's distribution: enumerated exactly, and by many draws."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import Tensor

import specdec as sd
from specdec.core.protocols import Proposer
from specdec.core.values import Context, Draw, Proposal
from specdec.lm.hf import HFCausalLM
from specdec.metrics.pit import uniformity
from specdec.proof.enumeration import BranchingStream
from specdec.recording.pit_values import Decoded, transforms
from tests.proposer import test_chained, test_medusa
from tests.support import each_proposer
from tests.support.each_proposer import PROPOSERS, runtime_of
from tests.support.enumerated import written
from tests.support.families import noisy_copy, plain_logits, tiny_model
from tests.support.toy import (
    NO_END,
    ChoosingChain,
    ChoosingTree,
    EnumeratedStream,
    Tokens,
    text_distribution,
    total_variation,
)
from tests.support.traced import without_cpp
from tests.support.uncompiled import without_compiler

V, LENGTH = 3, 3
PROMPT: Tokens = (2, 0, 1, 2)
ROUNDING = 1e-5  # float32, in the logits of three tokens
TWO = (-1, 0, 0)  # siblings
PATHS = [[0], [1], [0, 0], [1, 0]]
# So improbable is a right sampler that is called wrong, for each of the 12 tests below.
FALSE_ALARM = 1e-4
VERIFIER = tiny_model("llama", vocab_size=V, num_hidden_layers=1)
DRAFT = noisy_copy(VERIFIER, 0.5)
LARGER = tiny_model("llama", seed=3)
LARGER_DRAFT = noisy_copy(LARGER, 0.05)
RunBy = Callable[[pytest.MonkeyPatch], None]
RUNTIMES = [
    pytest.param(without_compiler, id="programs"),
    pytest.param(without_cpp, id="compiled", marks=pytest.mark.thorough),
]
Make = Callable[[HFCausalLM, HFCausalLM], Proposer]
ENUMERABLE: Mapping[str, Make] = {
    "none": lambda verifier, draft: sd.NoProposer(),
    "ngram": lambda verifier, draft: sd.NGram(2),
    "chain": lambda verifier, draft: sd.DraftModel(draft, ChoosingChain(1)),
    "siblings": lambda verifier, draft: sd.DraftModel(draft, ChoosingTree(TWO, Draw.IID)),
    "tree": lambda verifier, draft: sd.DraftModel(draft, sd.Sparse(PATHS)),
    "medusa": lambda verifier, draft: sd.Medusa(
        test_medusa.random_heads(verifier.model),
        verifier,
        sd.Sparse(PATHS),
        None,
        runtime_of(verifier),
    ),
}


@cache
def target(tokens: Tokens) -> Tensor:  # [V] float64
    """Return what the stock model says comes next, asked about plain text."""
    return plain_logits(VERIFIER, tokens)[-1].double().softmax(dim=-1)


@pytest.mark.parametrize("run_by", RUNTIMES)
@pytest.mark.parametrize(
    "name",
    [
        *sorted(ENUMERABLE.keys() - {"siblings"}),
        pytest.param("siblings", marks=pytest.mark.thorough),
    ],
)
def test_the_text_of_programs_is_exactly_the_verifiers(
    name: str, run_by: RunBy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All decisions of several steps enumerated, while programs write and rewind the caches."""
    run_by(monkeypatch)
    require_exact(name)


@pytest.mark.whole
@pytest.mark.thorough
def test_so_it_is_through_kernels_of_our_own() -> None:
    require_exact("tree")


def require_exact(name: str) -> None:
    verifier, draft = (HFCausalLM(each, runtime="compiled") for each in (VERIFIER, DRAFT))
    decoder = sd.SpeculativeDecoder(
        verifier,
        ENUMERABLE[name](verifier, draft),
        sd.Rejection(),
        stopping=sd.Stopping(LENGTH, NO_END),
    )

    aim = text_distribution(target, LENGTH, NO_END, PROMPT)
    found = total_variation(written(decoder, PROMPT), aim)
    assert found < ROUNDING, f"TV {found:.1e}"


Drafted = Callable[[Tokens, int], Tensor]  # text, of which so many tokens are drafted -> [V]


class Led(EnumeratedStream):
    """Uniforms that lead to each token in turn, as likely as the draft makes it."""

    def __init__(self, branching: BranchingStream, drafted: Drafted, watched: "Watched"):
        super().__init__(branching)
        self._drafted = drafted
        self._watched = watched

    def peek(self, count: int) -> list[float]:
        tokens, uniforms = self._watched.tokens, list[float]()
        for number in range(count):
            q = self._drafted(tokens, number).double().softmax(dim=-1)
            token = self.choose(q)
            uniforms.append(float(q[:token].sum() + q[token] / 2))
            tokens = (*tokens, token)
        self._watched.num_chains += 1
        return uniforms


class Watched:
    """Tells what a proposer drafts behind, and how often at once."""

    def __init__(self, proposer: Proposer, monkeypatch: pytest.MonkeyPatch):
        self.tokens: Tokens = ()
        self.num_chains = 0
        propose = proposer.propose

        def watched(contexts: Sequence[Context]) -> list[Proposal]:
            self.tokens = tuple(contexts[0].token_ids)
            return propose(contexts)

        monkeypatch.setattr(proposer, "propose", watched)


def drafted_by_model(tokens: Tokens, number: int) -> Tensor:
    return plain_logits(DRAFT, tokens)[-1]


def drafted_by_heads(tokens: Tokens, number: int) -> Tensor:
    heads = each_proposer.chained_heads(VERIFIER)
    return test_chained.distribution(heads, VERIFIER, list(tokens), number)


CHAINS: Mapping[str, tuple[Make, Drafted]] = {
    "draft_model": (
        lambda verifier, draft: sd.DraftModel(draft, sd.Chain(2)),
        drafted_by_model,
    ),
    "chained": (
        lambda verifier, draft: sd.Chained(
            each_proposer.chained_heads(VERIFIER), verifier, sd.Chain(2), None, "compiled"
        ),
        drafted_by_heads,
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("run_by", RUNTIMES)
@pytest.mark.parametrize("name", sorted(CHAINS))
def test_chains_that_one_program_drafts_leave_the_text_as_it_is(
    name: str, run_by: RunBy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_by(monkeypatch)
    monkeypatch.setattr("specdec.proposer.tree_proposer.is_plain", lambda stream: True)
    verifier, draft = (HFCausalLM(each, runtime="compiled") for each in (VERIFIER, DRAFT))
    make, drafted = CHAINS[name]
    proposer = make(verifier, draft)
    watched = Watched(proposer, monkeypatch)
    decoder = sd.SpeculativeDecoder(
        verifier,
        proposer,
        sd.Rejection(),
        stopping=sd.Stopping(LENGTH, NO_END),
        allow_lossy=True,  # an enumeration has other frequencies than draws, and no one minds
    )

    found = written(decoder, PROMPT, partial(Led, drafted=drafted, watched=watched))
    found = total_variation(found, text_distribution(target, LENGTH, NO_END, PROMPT))
    assert found < ROUNDING, f"TV {found:.1e}"
    assert watched.num_chains > 9, "each of three tokens behind each of three"


@pytest.mark.parametrize("run_by", RUNTIMES)
@pytest.mark.parametrize("name", sorted(PROPOSERS))
def test_many_texts_of_programs_are_spread_as_the_verifier_says(
    name: str, run_by: RunBy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probability integral transforms, by the stock model asked eagerly about plain text."""
    run_by(monkeypatch)
    verifier, draft = (HFCausalLM(each, runtime="compiled") for each in (LARGER, LARGER_DRAFT))
    decoder = sd.SpeculativeDecoder(
        verifier,
        PROPOSERS[name](verifier, draft),
        sd.Rejection(),
        stopping=sd.Stopping(24, NO_END),
        batch=8,
    )
    prompts = {str(at): [3 + at % 50, 2 + at % 7, 9] for at in range(64)}
    traces = decoder.decode([sd.Request(name, ids) for name, ids in prompts.items()])
    texts = [Decoded(each.prompt_id, prompts[each.prompt_id], each.output_ids) for each in traces]
    with torch.inference_mode():
        values = [each[0].numpy() for each in transforms(texts, HFCausalLM(LARGER), sd.Sampling())]
    found = uniformity(values)
    assert np.concatenate(values).size == 64 * 24
    assert found.num_impossible == 0
    assert found.p_value > FALSE_ALARM, found

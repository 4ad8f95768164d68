"""Chains that heads draft in one go: the tokens that they draft level by level, or a refusal."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import specdec as sd
from specdec.core.draft_chain import DraftChain
from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.lm.hf import HFCausalLM
from specdec.proposer import feature_proposer
from specdec.proposer import heads as heads_module
from specdec.proposer.head_programs import ChainOfHeads
from specdec.proposer.heads import HeadsProposer
from specdec.runtime.proven import RefusedError
from specdec.tree.fixed import Candidates
from tests.proposer import test_chained, test_medusa
from tests.support.families import tiny_model
from tests.support.traced import without_cpp
from tests.support.uncompiled import without_compiler

MODEL = tiny_model("llama")
HEADS = {
    "medusa": test_medusa.random_heads(MODEL),
    "medusa markov": test_medusa.random_heads(MODEL, correction="markov"),
    **{kind: test_chained.random_heads(MODEL, kind) for kind in test_chained.KINDS},
}
REQUESTS = [sd.Request("a", [3, 4, 5, 9, 2, 7]), sd.Request("b", [7]), sd.Request("c", [8, 2])]


class Grown(sd.Chain):
    """The same draws, by a rule of its own as far as anyone knows: it grows level by level."""

    def candidates(
        self, draft_probs: torch.Tensor, width: int, streams: Sequence[RandomStream]
    ) -> Candidates:
        return super().candidates(draft_probs, width, streams)


def proposer_of(name: str, tree: sd.Chain, runtime: str) -> HeadsProposer:
    kind = sd.Medusa if name.startswith("medusa") else sd.Chained
    return kind(HEADS[name], HFCausalLM(MODEL), tree, None, runtime)


def texts(proposer: HeadsProposer, sampling: Sampling, batch: int) -> list[Sequence[int]]:
    decoder = sd.SpeculativeDecoder(
        proposer.verifier, proposer, sd.Rejection(), sampling, sd.Stopping(12), batch
    )
    return [trace.output_ids for trace in decoder.decode(REQUESTS)]


RUNTIMES = [
    "eager",
    "programs",
    pytest.param("compiled", marks=pytest.mark.thorough),
]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(0.7, top_k=9)], ids=["T=0", "T>0"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", sorted(HEADS))
def test_the_same_tokens_as_level_by_level(
    name: str, batch: int, sampling: Sampling, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = texts(proposer_of(name, Grown(3), "eager"), sampling, batch)
    if runtime != "eager":
        (without_cpp if runtime == "compiled" else without_compiler)(monkeypatch)
    monkeypatch.setattr(feature_proposer, "grow", None)  # nothing may grow
    whole = proposer_of(name, sd.Chain(3), "eager" if runtime == "eager" else "compiled")
    assert texts(whole, sampling, batch) == grown


def inputs_of(rows: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 1, MODEL.config.hidden_size, generator=generator)
    roots = torch.full((rows, 1), 5)
    return hidden, roots, torch.rand(rows, 3, generator=generator, dtype=torch.float64)


def chain_of(name: str) -> ChainOfHeads:
    chain = DraftChain(3, Sampling(), MODEL.config.vocab_size)
    return ChainOfHeads(HEADS[name], HFCausalLM(MODEL), chain)


@pytest.mark.parametrize("name", sorted(HEADS))
@torch.inference_mode()
def test_a_proof_goes_on_with_the_tokens_that_were_drawn(name: str) -> None:
    """Rounding may draw another token; what follows it is then another text, and no mistake."""
    chain, inputs = chain_of(name), inputs_of(2)
    found = chain.drafted(*inputs)
    for one, other in zip(chain.expected(inputs, found), found, strict=True):
        torch.testing.assert_close(one, other)
    # Logits that move a token's bounds by a hair past its uniform.
    logits = found[0].clone()
    logits[:, 0, :] = logits[:, 0, :].roll(1, dims=-1)
    probs, token_ids = chain_of(name)._chain.drawn(logits, inputs[2])
    assert not torch.equal(token_ids, found[2])
    said, *drawn = chain.expected(inputs, (logits, probs, token_ids))
    assert torch.equal(drawn[1], token_ids)
    assert not torch.allclose(said[:, 0], logits[:, 0]), "the mistake itself is seen"


class Wrong(ChainOfHeads):
    """Its programs say something else than what they were written for."""

    @property
    def drafted(self) -> Any:
        right = super().drafted

        def draft(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            logits, probs, token_ids = right(*inputs)
            return logits, probs, (token_ids + 1) % 7

        return draft


@pytest.mark.whole
def test_a_wrong_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    without_cpp(monkeypatch)
    monkeypatch.setattr(heads_module, "ChainOfHeads", Wrong)
    with pytest.raises(RefusedError, match="the chain of MedusaHeads differs from itself"):
        texts(proposer_of("medusa", sd.Chain(3), "compiled"), Sampling(), 1)


@pytest.mark.whole
def test_what_was_chosen_for_the_user_steps_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grown = texts(proposer_of("medusa", Grown(3), "eager"), Sampling(), 1)
    without_cpp(monkeypatch)
    monkeypatch.setattr(heads_module, "ChainOfHeads", Wrong)
    proposer = proposer_of("medusa", sd.Chain(3), "auto")
    proposer._run_by("compiled")
    monkeypatch.setattr(proposer.verifier, "runtime", "compiled")

    def once(*given: Any) -> ChainOfHeads:
        monkeypatch.setattr(heads_module, "ChainOfHeads", ChainOfHeads)
        return Wrong(*given)

    monkeypatch.setattr(heads_module, "ChainOfHeads", once)
    assert texts(proposer, Sampling(), 1) == grown
    assert "runtime=auto: heads run eagerly from here on, since" in capsys.readouterr().out

"""Tiny models whose drafts learn while they draft, and fast."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel

from specdec.core.protocols import Learner, Proposer, VerificationRule
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.hf import HFCausalLM
from specdec.online.distil import OnlineDistillation
from specdec.online.learner import Distiller
from specdec.proposer.chained import Chained, ChainedHeads
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.heads import HeadsProposer
from specdec.proposer.medusa import Medusa, MedusaHeads
from specdec.tree.chain import Chain
from specdec.verification.rejection import Rejection
from tests.support.families import noisy_copy, tiny_model

V = 3
GAMMA = 2
FAST = {"every": 1, "samples": 2, "length": 12, "learning_rate": 0.02}
BESIDE = {"every": 3, "delay": 2}  # a lesson goes on beside two steps of three


@cache
def model(vocab_size: int = V) -> PreTrainedModel:
    """The verifier."""
    return tiny_model("llama", vocab_size=vocab_size, num_hidden_layers=1)


def verifier(vocab_size: int = V) -> HFCausalLM:
    return HFCausalLM(model(vocab_size))


def draft_model(vocab_size: int = V, tree: Any = None) -> DraftModel:
    """A draft that is far from the verifier."""
    draft = HFCausalLM(noisy_copy(model(vocab_size), amount=1.0))
    return DraftModel(draft, tree or Chain(GAMMA))


def heads(kind: str, of: HFCausalLM) -> HeadsProposer:
    """Heads of random weights, two of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        if kind == "medusa":
            return Medusa(MedusaHeads(of.state_size, of.vocab_size, GAMMA), of, Chain(GAMMA))
        own = ChainedHeads(of.state_size, of.vocab_size, GAMMA, link="both", prefix_attention=True)
        return Chained(own.eval(), of, Chain(GAMMA))


def proposers(of: HFCausalLM) -> dict[str, Proposer]:
    found: dict[str, Proposer] = {name: heads(name, of) for name in ("medusa", "chained")}
    return {"draft_model": draft_model(of.vocab_size), **found}


def taught(proposer: Proposer, of: HFCausalLM, **options: Any) -> Distiller:
    return OnlineDistillation(**{**FAST, **options}).teach(proposer, of)


def decoder(
    of: HFCausalLM,
    proposer: Proposer,
    learner: Learner | None,
    temperature: float = 1.0,
    length: int = 5,
    batch: int = 1,
    allow_lossy: bool = False,
    rule: VerificationRule | None = None,
) -> SpeculativeDecoder:
    sampling, ends = Sampling(temperature), Stopping(length)
    parts = of, proposer, rule or Rejection(), sampling, ends, batch
    return SpeculativeDecoder(*parts, allow_lossy=allow_lossy, learner=learner)


def requests(num: int, prompt: Sequence[int]) -> list[Request]:
    return [Request(str(number), list(prompt)) for number in range(num)]

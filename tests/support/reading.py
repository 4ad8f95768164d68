"""Heads, a draft and texts for whoever reads a text without decoding."""

from typing import Any

import torch

from specdec.heads.base import Heads
from specdec.lm.hf import HFCausalLM
from specdec.proposer.chained import ChainedHeads
from specdec.proposer.medusa import MedusaHeads
from specdec.training.objective import Batch
from tests.support.families import VOCAB_SIZE, random_ids, tiny_model

K = 3
H = 32
PREFIX = {"prefix_attention": True, "num_attention_heads": 4}
KINDS: dict[str, tuple[type[Heads], dict[str, Any]]] = {
    "medusa": (MedusaHeads, {}),
    "medusa shared": (MedusaHeads, {"own_vocabulary_head": False, "num_layers": 2}),
    "medusa markov": (MedusaHeads, {"correction": "markov", "rank": 3}),
    "token": (ChainedHeads, {"link": "token"}),
    "hidden": (ChainedHeads, {"link": "hidden"}),
    "both": (ChainedHeads, {"link": "both", "num_layers": 2}),
    "token prefix": (ChainedHeads, {"link": "token", **PREFIX}),
    "hidden prefix": (ChainedHeads, {"link": "hidden", **PREFIX}),
    "both prefix": (ChainedHeads, {"link": "both", "own_vocabulary_head": False, **PREFIX}),
}


def noisy() -> HFCausalLM:
    """The tiny verifier with noise on its weights: a draft that often agrees with it."""
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return HFCausalLM(model)


def heads_of(kind: str, verifier: HFCausalLM) -> Heads:
    """Heads that say something else each, and that no input leaves alone."""
    cls, options = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        heads = cls(H, VOCAB_SIZE, num_heads=K, **options).eval()
    unembedding: Any = verifier.model.get_output_embeddings()
    heads.start_from(unembedding.weight)
    generator = torch.Generator().manual_seed(5)
    for weight in heads.parameters():
        weight.data.add_(0.15 * torch.randn(weight.shape, generator=generator))
    return heads


def texts() -> Batch:
    """Three rows of unlike lengths, one too short for any path; a tenth does not count."""
    lengths = (19, 12, 2)
    token_ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    counted = torch.zeros_like(token_ids, dtype=torch.bool)
    chosen = torch.rand(token_ids.shape, generator=torch.Generator().manual_seed(1)) < 0.9
    for row, length in enumerate(lengths):
        token_ids[row, :length] = torch.tensor(random_ids(length, seed=row))
        counted[row, :length] = chosen[row, :length]
    return Batch(token_ids, counted)

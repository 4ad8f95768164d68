"""What is expected along held-out texts: by hand where that can be done, and like decoding."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from specdec.core.sampling import Sampling
from specdec.lm.hf import HFCausalLM
from specdec.proposer.draft_model import DraftModel
from specdec.training.expected_acceptance import HeldOut
from specdec.training.objective import Batch
from specdec.tree.chain import Chain
from specdec.tree.fixed import FixedTree
from specdec.tree.sampled import Sampled
from tests.support.families import random_ids, tiny_model

TAU = "eval_block_efficiency"


@pytest.fixture(scope="module")
def pair() -> tuple[HFCausalLM, HFCausalLM]:
    return HFCausalLM(tiny_model("llama", seed=1)), HFCausalLM(tiny_model("llama", seed=2))


def held_out() -> Batch:
    """Samples of which all but a beginning counts, in one of them but for a gap."""
    token_ids = torch.tensor([random_ids(14, seed) for seed in range(7)])
    counted = torch.ones(7, 14, dtype=torch.bool)
    counted[:, :4] = False
    counted[3, 8:10] = False
    return Batch(token_ids, counted)


def distributions(model: HFCausalLM, sampling: Sampling, batch: Batch) -> Tensor:  # [B, T, V]
    with torch.no_grad():
        logits = model.model(batch.token_ids).logits
    return sampling.warp(logits).roll(1, dims=1)


def runs(counted: Sequence[bool]) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for place, each in enumerate(counted):
        found[-1].append(place) if each else found.append([])
    return [run for run in found if run]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_draw_a_step_is_what_it_is_by_hand(
    pair: tuple[HFCausalLM, HFCausalLM], temperature: float
) -> None:
    verifier, draft = pair
    batch, sampling, tree = held_out(), Sampling(temperature), Chain(1)
    p, q = distributions(verifier, sampling, batch), distributions(draft, sampling, batch)
    overlap = p.minimum(q).sum(dim=-1)
    calls = 0.0
    for row, counted in enumerate(batch.counted.tolist()):
        for run in runs(counted):
            starts = [1.0] + [0.0] * (len(run) + 1)
            for place, token in enumerate(run):
                last = place == len(run) - 1  # where there is no room for a draft token
                accepted = 0.0 if last else float(overlap[row, token])
                starts[place + 1] += starts[place] * (1 - accepted)
                starts[place + 2] += starts[place] * accepted
            calls += sum(starts[: len(run)])
    found = HeldOut(tree, sampling).measure(verifier, DraftModel(draft, tree), draft, batch)
    assert found[TAU] == pytest.approx(int(batch.counted.sum()) / calls, rel=1e-5)
    assert found[f"{TAU}_low"] <= found[TAU] <= found[f"{TAU}_high"]


@pytest.mark.parametrize("tree", [Chain(3), Sampled([2, 1], "iid"),
                                  Sampled([3, 1], "without_replacement")])  # fmt: skip
def test_a_draft_that_is_the_verifier_is_always_accepted(
    pair: tuple[HFCausalLM, HFCausalLM], tree: FixedTree
) -> None:
    verifier, _ = pair
    token_ids = torch.tensor([random_ids(13, seed) for seed in range(6)])
    proposer = DraftModel(verifier, tree)
    batch = Batch.of(token_ids)
    found = HeldOut(tree, Sampling(1.0)).measure(verifier, proposer, verifier, batch)
    assert found[TAU] == pytest.approx(tree.max_depth + 1, rel=1e-3)

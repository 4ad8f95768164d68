"""Requests in flight: nobody waits for the slowest, and a longer text needs no more memory."""

import gc
from collections.abc import Sequence

import pytest
import torch

import specdec as sd
from specdec.core.values import Context, Verdict
from specdec.lm.hf import HFCausalLM
from tests.support.each_proposer import PROPOSERS
from tests.support.families import noisy_copy, tiny_model

VERIFIER = tiny_model("llama")
DRAFT = noisy_copy(VERIFIER, 0.02)
NUM_STEPS = 60


def test_whoever_is_done_makes_room() -> None:
    verifier = HFCausalLM(VERIFIER)
    decoder = sd.SpeculativeDecoder(verifier, sd.NoProposer(), sd.Rejection(), batch=2)
    budgets = [20, 2, 3, 4, 5, 6]  # the short ones follow each other beside the long one
    requests = [
        sd.Request(str(at), [3 + at], max_new_tokens=budget) for at, budget in enumerate(budgets)
    ]
    traces = decoder.decode(requests)
    assert [len(trace.output_ids) for trace in traces] == budgets
    assert verifier.num_calls == 20, "prompts of one token need no call of their own"


def live_bytes() -> int:
    """Count the memory of all tensors that somebody holds."""
    tensors = [
        each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)
    ]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
    return sum(each.nbytes() for each in storages.values())


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(PROPOSERS))
def test_memory_does_not_grow_with_the_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier, draft = HFCausalLM(VERIFIER), HFCausalLM(DRAFT)
    proposer = PROPOSERS[name](verifier, draft)
    stopping = sd.Stopping(max_new_tokens=4 * NUM_STEPS)
    decoder = sd.SpeculativeDecoder(verifier, proposer, sd.Rejection(), stopping=stopping, batch=3)
    requests = [sd.Request(str(at), [3 + at] * (2 + at)) for at in range(3)]
    decoder.decode(requests)  # what is made once is there
    held, update = list[int](), proposer.update

    def watched(contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        update(contexts, verdicts)
        held.append(live_bytes() if len(contexts) == 3 and len(held) % 4 == 0 else 0)

    monkeypatch.setattr(proposer, "update", watched)
    decoder.decode(requests)
    early, late = held[4 : NUM_STEPS // 3], held[NUM_STEPS // 2 : NUM_STEPS]
    assert len(late) == NUM_STEPS // 2
    assert max(late) <= 1.01 * max(early), "states, distributions or masks of old steps are kept"

"""How often a step waits for the device, whatever the batch: once to draft, once to verify.

A cascade drafts in steps of its own, each of which has to know what the one before it came to.
"""

from typing import Any

import pytest

import specdec as sd
from specdec.core.protocols import Forward
from specdec.lm.hf import HFCausalLM
from tests.support.each_proposer import PROPOSERS
from tests.support.families import noisy_copy, tiny_model
from tests.support.waiting import on_device

VERIFIER = tiny_model("llama")
DRAFT = noisy_copy(VERIFIER, 0.02)
DRAFTS_ON_HOST = ("none", "ngram")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", sorted(PROPOSERS))
def test_a_step_waits_twice_at_most(
    name: str, temperature: float, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the text is the same as where reading costs nothing."""
    verifier, draft = HFCausalLM(VERIFIER), HFCausalLM(DRAFT)
    decoder = sd.SpeculativeDecoder(
        verifier,
        PROPOSERS[name](verifier, draft),
        sd.Rejection(),
        sd.Sampling(temperature),
        sd.Stopping(max_new_tokens=12),
        batch=batch,
    )
    requests = [sd.Request(str(at), [3 + at] * (2 + 3 * at)) for at in range(batch)]
    expected = [trace.output_ids for trace in decoder.decode(requests)]
    num_steps = count_forwards(verifier, monkeypatch)
    num_inner = count_forwards(draft, monkeypatch)
    with on_device(monkeypatch) as counts:
        traces = decoder.decode(requests)
    assert [trace.output_ids for trace in traces] == expected
    most = len(num_steps)
    if name not in DRAFTS_ON_HOST:
        most += len(num_inner if name == "cascade" else num_steps)
    assert len(num_steps) <= counts.total() <= most, dict(counts)


def count_forwards(model: HFCausalLM, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return a list that grows with each forward of a model."""
    found: list[None] = []
    forward = model.forward

    def counted(*args: Any, **kwargs: Any) -> Forward:
        found.append(None)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    return found

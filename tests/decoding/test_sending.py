"""What a step sends to the device is sent without waiting, from pinned memory."""

import pytest

import specdec as sd
from specdec.lm.hf import HFCausalLM
from specdec.runtime.host_waits import noting_waits
from tests.support.each_proposer import PROPOSERS
from tests.support.families import noisy_copy, tiny_model

VERIFIER = tiny_model("llama")
DRAFT = noisy_copy(VERIFIER, 0.02)
SENDING = ("torch.tensor", "torch.as_tensor", "index by a list")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", sorted(PROPOSERS))
def test_nothing_is_sent_from_memory_that_may_move(
    name: str, temperature: float, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier, draft = HFCausalLM(VERIFIER), HFCausalLM(DRAFT)
    decoder = sd.SpeculativeDecoder(
        verifier,
        PROPOSERS[name](verifier, draft),
        sd.Rejection(),
        sd.Sampling(temperature),
        sd.Stopping(max_new_tokens=12),
        batch=batch,
    )
    requests = [sd.Request(str(at), [3 + at] * (2 + 3 * at)) for at in range(batch + 1)]
    found: list[str] = []
    for module in ("on_host", "shown"):
        monkeypatch.setattr(f"specdec.core.{module}.reading_waits", lambda device: True)
    with noting_waits(found.append):
        decoder.decode(requests)
    assert found, "reading is noted, too"
    assert not [wait for wait in found if wait.startswith(SENDING)]

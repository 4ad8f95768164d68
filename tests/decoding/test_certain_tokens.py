"""At temperature 0 every token is certain: none is drawn, and texts are what drawing makes them."""

from collections.abc import Callable

import pytest

import specdec as sd
from specdec.core.protocols import Proposer
from specdec.core.randomness import RandomStream
from specdec.lm.hf import HFCausalLM
from tests.support.families import noisy_copy, tiny_model

VERIFIER = tiny_model("llama")
DRAFT = noisy_copy(VERIFIER, 0.02)
PROPOSERS: dict[str, Callable[[], Proposer]] = {
    "none": sd.NoProposer,
    "ngram": lambda: sd.NGram(3),
    "tree": lambda: sd.DraftModel(HFCausalLM(DRAFT), sd.Sparse([[0], [1], [0, 0]])),
}


def texts(name: str, temperature: float, batch: int) -> list[tuple[int, ...]]:
    decoder = sd.SpeculativeDecoder(
        HFCausalLM(VERIFIER),
        PROPOSERS[name](),
        sd.Rejection(),
        sampling=sd.Sampling(temperature),
        stopping=sd.Stopping(max_new_tokens=12),
        batch=batch,
    )
    requests = [sd.Request(str(at), [3 + at] * (2 + at)) for at in range(3)]
    return [trace.output_ids for trace in decoder.decode(requests)]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", sorted(PROPOSERS))
def test_nothing_is_left_to_chance(name: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # So close to 0 that the likeliest token is drawn, unless two are equally likely.
    expected = texts(name, 1e-6, batch)

    def refuse(self: RandomStream) -> float:
        raise AssertionError("a number was drawn")

    monkeypatch.setattr(RandomStream, "uniform", refuse)
    assert texts(name, 0.0, batch) == expected
    with pytest.raises(AssertionError, match="a number was drawn"):
        texts(name, 1.0, batch)

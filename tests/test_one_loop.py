"""examples/one_loop.py: the decoder's tokens at temperature 0, and the verifier's distribution."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec as sd
from specdec.proof.enumeration import BranchingStream, outcomes
from specdec.testing.table_lm import TableLM
from tests.support.toy import (
    Tokens,
    full_context,
    mixture,
    table_lm,
    text_distribution,
    total_variation,
    warped,
)

PATH = Path(__file__).parents[1] / "examples" / "one_loop.py"
VERIFIER = full_context(21, 1.0)
DRAFT = mixture(VERIFIER, full_context(22, 1.0), 0.4)
PROMPT = (0, 1)
LENGTH = 3
ENDS = frozenset({2})


@pytest.fixture(scope="module")
def one_loop() -> ModuleType:
    spec = importlib.util.spec_from_file_location("one_loop", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def distribution(
    one_loop: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[Tokens, float]]:
    """Return the exact distribution of what the example emits, all of its noise enumerated."""

    def enumerated(sampling: sd.Sampling, verifier: TableLM) -> dict[Tokens, float]:
        draft = table_lm(DRAFT)

        def play(stream: BranchingStream) -> Tokens:
            monkeypatch.setattr(one_loop, "RandomStream", lambda *key: stream)
            options: dict[str, Any] = {"gamma": 2, "max_new_tokens": LENGTH, "end_ids": ENDS}
            return tuple(one_loop.speculate(verifier, draft, PROMPT, sampling, **options))

        return outcomes(play)

    return enumerated


def test_it_is_read_at_a_glance() -> None:
    assert len(PATH.read_text(encoding="utf-8").splitlines()) <= 60


def test_at_temperature_0_it_emits_the_decoders_tokens(one_loop: ModuleType) -> None:
    verifier, draft = sd.load("zoo:verifier"), sd.load("zoo:draft")
    stopping = sd.Stopping.of(verifier, max_new_tokens=24)
    sampling = sd.Sampling(temperature=0.0)
    decoder = sd.SpeculativeDecoder(
        verifier, sd.DraftModel(draft, sd.Chain(gamma=4)), sd.Rejection(), sampling, stopping
    )
    prompts = ["import os\n", "def main():\n", "class Parser:\n"]
    requests = [sd.Request(text, verifier.encode(text)) for text in prompts]
    expected = [list(trace.output_ids) for trace in decoder.decode(requests)]
    assert len({tuple(ids) for ids in expected}) == len(prompts)
    for request, output_ids in zip(requests, expected, strict=True):
        found = one_loop.speculate(
            verifier, draft, request.token_ids, sampling,
            max_new_tokens=24, end_ids=stopping.end_ids,
        )  # fmt: skip
        assert found == output_ids


@pytest.mark.parametrize("sampling", [sd.Sampling(1.0), sd.Sampling(0.7, top_k=2)], ids=str)
def test_its_text_has_exactly_the_verifiers_distribution(
    distribution: Callable[..., dict[Tokens, float]], sampling: sd.Sampling
) -> None:
    expected = text_distribution(warped(VERIFIER, sampling), LENGTH, ENDS, PROMPT)
    assert total_variation(distribution(sampling, table_lm(VERIFIER)), expected) < 1e-12


class _KeepsRejected(TableLM):
    """Forgets nothing."""

    def keep(self, row: int, prefix: int, nodes: object = ()) -> None:
        pass


def test_a_loop_that_forgets_nothing_is_found(
    distribution: Callable[..., dict[Tokens, float]],
) -> None:
    """What the test above would say of a cache that is not rewound."""

    def logits_after(tokens: Tokens) -> Tensor:
        return torch.log(VERIFIER(tokens))

    stale = _KeepsRejected(logits_after, vocab_size=3)
    expected = text_distribution(VERIFIER, LENGTH, ENDS, PROMPT)
    assert total_variation(distribution(sd.Sampling(1.0), stale), expected) > 1e-3

"""The embedded family: small enough for git, trained well enough, decoded as `generate()` does."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import specdec as sd
from specdec.core.jsonl import read_jsonl
from specdec.core.protocols import Proposer
from specdec.zoo.stdlib import HELD_OUT, training_files

ZOO = Path(sd.__file__).parent / "zoo"
MAX_NEW_TOKENS = 24


@pytest.fixture(scope="module")
def verifier() -> sd.HFCausalLM:
    return sd.load("zoo:verifier")


@pytest.fixture(scope="module")
def requests(verifier: sd.HFCausalLM) -> list[sd.Request]:
    """Five prompts of unlike lengths."""
    texts = [prompt.turns[0][-1].content for prompt in sd.load_prompts("zoo:prompts", limit=5)]
    return [
        sd.Request(str(number), verifier.encode(text)[: 20 + 37 * number])
        for number, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def generated(verifier: sd.HFCausalLM, requests: list[sd.Request]) -> list[list[int]]:
    """What transformers' own greedy search says."""
    texts = []
    for request in requests:
        batch = torch.tensor([request.token_ids])
        model: Any = verifier.model
        output = model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=0,
        )
        texts.append(output[0, len(request.token_ids) :].tolist())
    return texts


def proposers(verifier: sd.HFCausalLM) -> dict[str, Proposer]:
    draft = sd.load("zoo:draft", vocabulary_of="zoo:verifier")
    tree = sd.Sparse([[0, 0, 0, 0], [0, 1], [1]])
    return {
        "none": sd.NoProposer(),
        "ngram": sd.NGram(gamma=4),
        "draft_model": sd.DraftModel(draft, sd.Chain(gamma=4)),
        "medusa": sd.Medusa.load("zoo:medusa", verifier, tree),
        "chained": sd.Chained.load("zoo:chained", verifier, tree),
    }


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.thorough), 5])
@pytest.mark.parametrize("name", ["none", "ngram", "draft_model", "medusa", "chained"])
def test_greedy_tokens_are_those_of_generate(
    name: str,
    batch: int,
    verifier: sd.HFCausalLM,
    requests: list[sd.Request],
    generated: list[list[int]],
) -> None:
    stopping = sd.Stopping.of(verifier, MAX_NEW_TOKENS)
    decoder = sd.SpeculativeDecoder(
        verifier, proposers(verifier)[name], sd.Rejection(), sd.Sampling(0.0), stopping, batch=batch
    )
    for trace, expected in zip(decoder.decode(requests), generated, strict=True):
        assert list(trace.output_ids) == expected, f"{name} leaves the greedy path at B={batch}"


def test_recorded_text_is_accepted_whole(
    verifier: sd.HFCausalLM, requests: list[sd.Request], generated: list[list[int]]
) -> None:
    texts = {request.request_id: ids for request, ids in zip(requests, generated, strict=True)}
    stopping = sd.Stopping.of(verifier, MAX_NEW_TOKENS)
    decoder = sd.SpeculativeDecoder(
        verifier, sd.Recorded(texts, gamma=4), sd.Rejection(), sd.Sampling(0.0), stopping
    )
    for trace in decoder.decode(requests):
        assert all(step.accepted == step.drafted for step in trace.steps)
        assert len(trace.steps) == math.ceil(len(trace.output_ids) / 5)


def test_models_are_trained(verifier: sd.HFCausalLM) -> None:
    """Held-out text costs far less than the 11 bits of a uniform guess among 2048 tokens."""
    text = "".join(prompt.turns[0][-1].content for prompt in sd.load_prompts("zoo:prompts"))
    batch = torch.tensor([verifier.encode(text)[:1024]])
    draft = sd.load("zoo:draft", vocabulary_of="zoo:verifier")
    with torch.inference_mode():
        losses = [
            float(lm.model(input_ids=batch, labels=batch).loss) / math.log(2)
            for lm in (verifier, draft)
        ]
    assert losses[0] < 6, f"the verifier needs {losses[0]:.2f} bits per token"
    assert losses[0] < losses[1] < 7.5, f"the draft model needs {losses[1]:.2f} bits per token"


def test_family_fits_into_git() -> None:
    size = sum(path.stat().st_size for path in ZOO.rglob("*") if path.suffix != ".py")
    assert size <= 24e6, f"the zoo takes {size / 1e6:.1f} MB, more than 24"


def test_prompts_are_held_out() -> None:
    rows = [row for _, row in read_jsonl(ZOO / "prompts.jsonl")]
    assert {row["category"] for row in rows} == {name.removesuffix(".py") for name in HELD_OUT}
    trained_on = [path.as_posix() for path in training_files()]
    in_packages = tuple(f"/{name}" for name in HELD_OUT if "/" in name)
    assert not [path for path in trained_on if path.endswith(in_packages)]


def test_both_models_have_a_context_of_1024() -> None:
    for role in ("verifier", "draft"):
        config = json.loads((ZOO / role / "config.json").read_text())
        assert config["max_position_embeddings"] >= 1024

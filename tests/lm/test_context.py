"""How far a model reads: scaled rotations, learned positions, and a limit of the user's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.context import limited_length, steady_length
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load
from specdec.proposer.draft_model import DraftModel
from specdec.tree.chain import Chain
from specdec.verification.rejection import Rejection
from tests.support.families import random_ids, tiny_model
from tests.support.running import CommandLine, Tiny

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_64, LLAMA3_16 = ({**LLAMA3, "original_max_position_embeddings": each} for each in (64, 16))
LONG = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 64,
}  # fmt: skip
CONTEXTS: dict[str, tuple[str, int, dict[str, Any] | None, int]] = {
    "plain": ("llama", 64, None, 64),
    "yarn, as cards say": ("qwen2", 64, YARN, 256),
    "yarn, beyond what it was trained on": ("qwen3", 80, YARN, 256),
    "yarn, and both lengths": ("qwen2", 256, YARN, 256),
    "yarn, and a shorter length that somebody chose": ("qwen2", 32, YARN, 32),
    "yarn without the original": ("llama", 64, {"rope_type": "yarn", "factor": 2.5}, 160),
    "linear": ("llama", 64, {"rope_type": "linear", "factor": 2.0}, 128),
    "linear by its old name": ("llama", 64, {"type": "linear", "factor": 2.0}, 128),
    "llama3": ("llama", 64, LLAMA3_64, 256),
    "llama3, and both lengths": ("llama", 128, LLAMA3_16, 128),
    "dynamic": ("llama", 64, {"rope_type": "dynamic", "factor": 2.0}, 64),
    "longrope": ("phi3", 256, LONG, 64),
    "learned": ("gpt2", 64, None, 64),
}


def config_of(family: str, declared: int, scaling: dict[str, Any] | None) -> Any:
    scaled: dict[str, Any] = {} if scaling is None else {"rope_scaling": dict(scaling)}
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "head_dim": 8, "pad_token_id": 0}
    if family == "phi3":  # keeps it beside the scaling
        scaled["original_max_position_embeddings"] = 64
    return AutoConfig.for_model(family, max_position_embeddings=declared, **sizes, **scaled)


@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts(name: str) -> None:
    family, declared, scaling, expected = CONTEXTS[name]
    assert steady_length(config_of(family, declared, scaling)) == expected


def test_layers_that_rotate_unlike() -> None:
    """As gemma3: one scaled kind of layer and one plain; the declared length is the scaled one."""
    config = AutoConfig.for_model("gemma3_text", max_position_embeddings=96, sliding_window=6)
    config.rope_parameters["full_attention"] |= {"rope_type": "linear", "factor": 8.0}
    assert steady_length(config) == 96
    config.rope_parameters["full_attention"] |= {"rope_type": "dynamic", "factor": 8.0}
    assert steady_length(config) == 96
    config.rope_parameters["full_attention"] |= {**YARN, "original_max_position_embeddings": 48}
    assert steady_length(config) == 192


@pytest.mark.parametrize("name", ["yarn, as cards say", "linear", "llama3"])
def test_text_beyond_the_original_context_is_generate_s(name: str) -> None:
    family, declared, scaling, _ = CONTEXTS[name]
    overrides: dict[str, Any] = {"max_position_embeddings": declared, "rope_scaling": scaling}
    model, draft = (tiny_model(family, seed, **overrides) for seed in (0, 1))
    prompt = random_ids(70, seed=5)
    batch = torch.tensor([prompt])
    writer: Any = model
    expected = writer.generate(
        batch, attention_mask=torch.ones_like(batch), do_sample=False, max_new_tokens=12,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    proposer = DraftModel(HFCausalLM(draft), Chain(3))
    decoder = SpeculativeDecoder(
        HFCausalLM(model), proposer, Rejection(), Sampling(0), Stopping(12), batch=2
    )
    requests = [Request("long", prompt), Request("short", random_ids(5, seed=6))]
    assert list(decoder.decode(requests)[0].output_ids) == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("name", "limit", "complaint"),
    [
        ("plain", 48, None),
        ("plain", 500, None),  # a rotation ends nowhere: generate() goes on, too
        ("learned", 48, None),
        ("learned", 65, "expected at most 64, where its positions end"),
        ("longrope", 65, "expected at most 64, where its positions end"),
        ("dynamic", 65, "expected at most 64, where its positions end"),
        ("plain", 1, "expected an integer >= 2"),
        ("plain", True, "expected an integer >= 2"),
        ("plain", "64", "expected an integer >= 2"),
    ],
)
def test_limits(name: str, limit: Any, complaint: str | None) -> None:
    family, declared, scaling, _ = CONTEXTS[name]
    config = config_of(family, declared, scaling)
    if complaint is None:
        assert limited_length(config, limit, "verifier.max_length") == limit
        return
    with pytest.raises(UserError) as caught:
        limited_length(config, limit, "verifier.max_length")
    assert str(caught.value) == f"verifier.max_length={limit!r}: {complaint}"


def test_a_limit_is_where_texts_end(tiny: Tiny) -> None:
    verifier = load(str(tiny.verifier), max_length=24)
    draft = load(str(tiny.draft), field="draft.path", max_length=16)
    assert (verifier.max_length, draft.max_length) == (24, 16)
    assert load(str(tiny.verifier)).max_length > 24, "the limit of one is not another's"
    proposer = DraftModel(draft, Chain(3))
    decoder = SpeculativeDecoder(verifier, proposer, Rejection(), Sampling(0), Stopping(99))
    (trace,) = decoder.decode([Request("a", [5, 6, 7, 8])])
    if trace.finish_reason == "context":
        assert len(trace.output_ids) == 20
    assert all(step.drafted == 0 for step in trace.steps[-2:])
    with pytest.raises(UserError, match=r"^draft\.max_length=0: expected an integer >= 2$"):
        load(str(tiny.draft), field="draft.path", max_length=0)


@pytest.mark.whole
def test_the_command_line_heeds_it(cli: CommandLine, tiny: Tiny, empty_folder: Path) -> None:
    """Prompts are held to it before a model is loaded, and a run is another with another one."""
    ended = cli("decode", *tiny.options("run", "verifier.max_length=3"))
    assert ended.status == 2
    assert "context of 3" in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert cli("decode", *tiny.options("run", "verifier.max_length=40")).status == 0
    ended = cli("decode", *tiny.options("run", "verifier.max_length=44"))
    assert ended.status == 2, "another limit is another run"
    assert cli("decode", *tiny.options("other", "draft.max_length=0")).status == 0, "no draft"
    ended = cli("decode", *tiny.options("other", "proposer=draft_model", "draft.max_length=0"))
    assert (ended.status, ended.err.strip()) == (
        2,
        "error: draft.max_length=0: expected an integer >= 2",
    )

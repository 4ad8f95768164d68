"""Layers that keep states: what is decoded is what the stock model says of whole texts."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec as sd
from specdec.core.errors import UserError
from specdec.core.protocols import Proposer
from specdec.lm import hf, recurrent
from specdec.lm.cached_as import cached_as, require_for_states
from specdec.lm.check import prove
from specdec.lm.check_states import states_differ
from specdec.lm.hf import HFCausalLM
from specdec.lm.layer_kinds import LayerKind, layer_kinds, why_no_trees
from specdec.lm.loadable import refuse_unsupported
from specdec.lm.recurrent import RecurrentLM, causal_lm
from specdec.proposer.medusa import Medusa
from tests.proposer import test_medusa
from tests.support.each_proposer import PROPOSERS
from tests.support.enumerated import written
from tests.support.families import (
    BOUNDED_STEPS,
    FAMILIES,
    ONE_AT_A_TIME,
    RECURRENT,
    noisy_copy,
    plain_logits,
    random_ids,
    tiny_model,
)
from tests.support.ragged import Conversation
from tests.support.toy import (
    NO_END,
    ChoosingChain,
    Tokens,
    text_distribution,
    total_variation,
)
from tests.support.uniform import drawn_texts, fallen

EXACT = 1e-4  # relative 2-norm in fp32; scans in pieces add up in another order
PROMPTS = [random_ids(14, 1), random_ids(2, 2), [7], random_ids(23, 4)]
NEW = 16
each_family = pytest.mark.parametrize("family", sorted(RECURRENT))
# One of each kind; the others take as long, and find the same.
TYPICAL = ("lfm2", "mamba", "nemotron_h", "qwen3_next")
OTHERS = (
    pytest.param(each, marks=pytest.mark.thorough) for each in RECURRENT if each not in TYPICAL
)
typical_first = pytest.mark.parametrize("family", [*TYPICAL, *OTHERS])


def decoder_of(
    verifier: HFCausalLM,
    proposer: Proposer,
    temperature: float = 0.0,
    batch: int = 1,
    new: int = NEW,
) -> sd.SpeculativeDecoder:
    rule, sampling = sd.Rejection(), sd.Sampling(temperature)
    return sd.SpeculativeDecoder(
        verifier, proposer, rule, sampling, sd.Stopping(new, NO_END), batch
    )


def texts(decoder: sd.SpeculativeDecoder) -> list[list[int]]:
    requests = [sd.Request(str(number), prompt) for number, prompt in enumerate(PROMPTS)]
    return [list(trace.output_ids) for trace in decoder.decode(requests)]


# --- the proof, and conversations ---------------------------------------------------------------


@each_family
def test_each_family_passes_the_proof(family: str) -> None:
    model = tiny_model(family)
    refuse_unsupported(model.config, family)
    assert prove(model, family) < EXACT
    assert states_differ(model) is None
    assert recurrent.goes_on(model) is (family not in ONE_AT_A_TIME)


@pytest.mark.parametrize("most", [0, 3, 1000])
@typical_first
def test_ragged_chains_equal_plain_text(
    family: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chains of unlike lengths, of which more or less is accepted, in some of the rows."""
    monkeypatch.setattr(recurrent, "MOST_AGAIN", most)
    monkeypatch.setattr(hf, "PREFILL_CHUNK", 4)
    talk = Conversation(tiny_model(family), [13, 2, 8], capacity=64)
    talk.prefill()
    for rows, shapes in [
        ([0, 1, 2], [1, 1, 1]),
        ([0, 2], [3, 1]),
        ([2, 1], [1, 3]),
        ([1], [1]),
        ([1], [3]),
        ([0, 1, 2], [1, 3, 1]),
        ([0, 1, 2], [3, 3, 3]),
    ]:
        talk.step(rows, shapes)
        assert talk.worst < EXACT, f"{family}: {shapes} in rows {rows}: {talk.worst:.1e}"
    talk.check_texts()
    assert talk.worst < EXACT, f"{family}: after the last step, {talk.worst:.1e}"


@each_family
def test_a_row_can_be_rewound_to_anywhere(family: str) -> None:
    """Also to before what was kept: then all of it is read again."""
    model, text = tiny_model(family), random_ids(30, 5)
    lm = causal_lm(model)
    lm.open(1, 64)
    lm.prefill([0], [text[:20]])
    truth = plain_logits(model, text)
    for length in (17, 17, 9, 0, 4):
        lm.keep(0, min(length, lm.length(0)))
        start = lm.length(0)
        found = lm.forward([0], torch.tensor([text[start : start + 5]])).logits[0]
        error = float((found - truth[start : start + 5]).norm() / truth[start : start + 5].norm())
        assert error < EXACT, f"{family}: back to {length}: {error:.1e}"
        lm.keep(0, start + 2)


# --- texts --------------------------------------------------------------------------------------

CHAINS: Mapping[str, Callable[[HFCausalLM, HFCausalLM], Proposer]] = {
    name: PROPOSERS[name] for name in ("none", "ngram", "draft_model", "chained")
} | {
    "medusa": lambda verifier, draft: Medusa(
        test_medusa.random_heads(verifier.model), verifier, sd.Chain(2)
    )
}


def greedy(model: Any, prompt: Sequence[int]) -> list[int]:
    """Read the whole text for each token."""
    text = list(prompt)
    for _ in range(NEW):
        text.append(int(plain_logits(model, text)[-1].argmax()))
    return text[len(prompt) :]


@cache
def generated(family: str) -> list[list[int]]:
    """What transformers writes greedily, with a cache of its own."""
    model: Any = tiny_model(family)
    found = list[list[int]]()
    if family in BOUNDED_STEPS:
        return [greedy(model, prompt) for prompt in PROMPTS]
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        settings: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        mask = torch.ones_like(ids)
        text = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, **settings)
        found.append(text[0, len(prompt) :].tolist())
    return found


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("proposer", sorted(CHAINS))
@typical_first
def test_all_proposers_write_what_generate_writes(family: str, proposer: str, batch: int) -> None:
    """The draft model is of the same family: it is rewound, too."""
    model = tiny_model(family)
    verifier, draft = causal_lm(model), causal_lm(noisy_copy(model, 0.05))
    decoder = decoder_of(verifier, CHAINS[proposer](verifier, draft), batch=batch)
    assert texts(decoder) == generated(family)


@pytest.mark.parametrize("family", ["qwen3_next", "jamba", "lfm2", "mamba"])
def test_without_a_cache_the_same_is_written(family: str) -> None:
    model = tiny_model(family)
    verifier = cached_as("none", model)
    draft = causal_lm(noisy_copy(model, 0.05))
    decoder = decoder_of(verifier, sd.DraftModel(draft, sd.Chain(3)), batch=3)
    assert texts(decoder) == generated(family)


def test_a_draft_with_states_serves_a_verifier_without() -> None:
    verifier, draft = causal_lm(tiny_model("llama")), causal_lm(tiny_model("qwen3_next"))
    proposer = sd.DraftModel(draft, sd.Chain(3))
    plain = texts(decoder_of(verifier, sd.NoProposer()))
    assert texts(decoder_of(verifier, proposer, batch=3)) == plain


V, LENGTH = 3, 3
PROMPT: Tokens = (2, 0, 1, 2)
DRAFTS: Mapping[str, Callable[[HFCausalLM], Proposer]] = {
    "none": lambda draft: sd.NoProposer(),
    "ngram": lambda draft: sd.NGram(2),
    "chain": lambda draft: sd.DraftModel(draft, ChoosingChain(2)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("family", ["qwen3_5_text", "lfm2", "mamba2"])
@pytest.mark.parametrize("drafts", sorted(DRAFTS))
def test_the_text_has_exactly_the_distribution_of_the_model(drafts: str, family: str) -> None:
    model = tiny_model(family, vocab_size=V)
    proposer = DRAFTS[drafts](causal_lm(noisy_copy(model, 0.5)))
    decoder = decoder_of(causal_lm(model), proposer, temperature=1.0, new=LENGTH)

    @cache
    def target(tokens: Tokens) -> Tensor:
        return plain_logits(model, tokens)[-1].double().softmax(dim=-1)

    with torch.inference_mode():
        aim = text_distribution(target, LENGTH, NO_END, PROMPT)
    found = total_variation(written(decoder, PROMPT), aim)
    assert found < 1e-4, f"TV {found:.1e}"


@pytest.mark.thorough
@pytest.mark.parametrize("proposer", ["medusa", "chained", "draft_model"])
@pytest.mark.parametrize("family", ["qwen3_next", "lfm2", "mamba"])
def test_texts_of_heads_fall_where_the_model_says(family: str, proposer: str) -> None:
    """Probability integral transforms at T=1: too many states to enumerate heads."""
    model = tiny_model(family)
    verifier, draft = causal_lm(model), causal_lm(noisy_copy(model, 0.3))
    decoder = decoder_of(verifier, CHAINS[proposer](verifier, draft), 1.0, batch=3, new=30)
    drawn = drawn_texts(decoder)
    found = fallen(drawn, cached_as("none", model))
    assert found.num_impossible == 0
    assert found.p_value > 1e-4, f"p {found.p_value:.1e}"
    wrong = fallen(drawn, causal_lm(noisy_copy(model, 0.5)))
    assert wrong.p_value < 1e-4, "too few tokens to tell another model"


# --- what is read again, and what is kept -------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "proposer", "is_again"),
    [
        ("qwen3_next", "none", False),
        ("qwen3_next", "ngram", True),
        ("lfm2", "ngram", False),  # inputs of convolutions can be taken back
        ("mamba", "ngram", False),  # there are states behind each token
    ],
)
def test_tokens_are_read_again_where_they_must_be(
    family: str, proposer: str, is_again: bool
) -> None:
    model = tiny_model(family)
    verifier = causal_lm(model)
    assert isinstance(verifier, RecurrentLM)
    decoder = decoder_of(verifier, CHAINS[proposer](verifier, verifier), batch=1)
    traces = decoder.decode([sd.Request(str(n), prompt) for n, prompt in enumerate(PROMPTS)])
    again = [step.reread for trace in traces for step in trace.steps]
    assert None not in again
    assert any(again) is is_again
    assert all((number or 0) <= recurrent.MOST_AGAIN + 4 for number in again)


def test_states_have_one_size_and_memory_does_not_grow_with_steps() -> None:
    verifier = causal_lm(tiny_model("mamba2"))
    assert isinstance(verifier, RecurrentLM)
    sizes = set[int]()
    for new in (8, 64):
        decoder_of(verifier, sd.NGram(3), new=new).decode([sd.Request("a", random_ids(9, 1))])
        sizes.add(verifier.state_bytes)
        assert len(verifier._cache._snapshots[0]) <= 1
    assert len(sizes) == 1
    # Per layer: the last inputs of the convolution, and a matrix per head.
    heads, width, states, groups, kernel = 4, 16, 8, 2, 4
    inputs = (heads * width + 2 * groups * states) * kernel
    assert sizes == {2 * 4 * (inputs + heads * width * states)}


# --- kinds, and refusals ------------------------------------------------------------------------


def test_kinds_of_layers_are_those_of_the_configuration() -> None:
    cells, states = LayerKind.CELLS, LayerKind.STATES
    assert layer_kinds(tiny_model("llama").config) == [cells, cells]
    assert layer_kinds(tiny_model("lfm2").config) == [states, cells, states]
    assert layer_kinds(tiny_model("falcon_h1").config) == [LayerKind.BOTH] * 3
    found = layer_kinds(tiny_model("nemotron_h").config)
    assert found[:2] + found[3:] == [states, cells, states]
    assert found[2] in (LayerKind.NOTHING, states)  # until 5.23 its cache had a state for it
    assert all(why_no_trees(tiny_model(family).config) is None for family in FAMILIES)


@pytest.mark.parametrize("policy", [None, "none"])
@pytest.mark.parametrize("family", ["qwen3_next", "mamba"])
def test_trees_are_refused_in_a_line(family: str, policy: str | None) -> None:
    model = tiny_model(family)
    verifier = cached_as(policy, model)
    tree = sd.Sparse([[0], [1], [0, 0], [1, 0]])  # a draft reads both of the first two
    proposer = sd.DraftModel(HFCausalLM(tiny_model("llama")), tree)
    with pytest.raises(UserError, match=f"^{family} cannot read trees, since its recurrent") as no:
        texts(decoder_of(verifier, proposer))
    assert "\n" not in str(no.value)
    drafting = sd.DraftModel(causal_lm(model), tree)
    with pytest.raises(UserError, match=f"^{family} cannot read trees"):
        texts(decoder_of(HFCausalLM(tiny_model("llama")), drafting))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, "compiled"), "run by runtime=eager alone, not by 'compiled'"),
        ((sd.SlidingWindow(8), "eager"), "forget nothing; expected cache=error, not sliding"),
        ((sd.Clear(8), "auto"), "forget nothing; expected cache=error, not clear"),
        ((sd.ErrorWhenFull(max_bytes=8), "eager"), "do not grow; expected cache.max_tokens"),
    ],
)
def test_what_states_cannot_do_is_refused_in_a_line(given: tuple[Any, str], message: str) -> None:
    config = tiny_model("qwen3_next").config
    with pytest.raises(UserError, match=message) as refused:
        require_for_states(config, *given, "verifier.path='a'")
    assert str(refused.value).startswith("verifier.path='a': qwen3_next has recurrent layers")
    require_for_states(tiny_model("llama").config, *given, "verifier.path='a'")


@pytest.mark.parametrize("family", ["recurrent_gemma", "minimax"])
def test_models_that_keep_their_states_themselves_are_refused(family: str) -> None:
    overrides: Mapping[str, Mapping[str, Any]] = {
        "recurrent_gemma": {
            "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 6,
            "block_types": ["recurrent", "recurrent", "attention"],
        },
        "minimax": {"num_hidden_layers": 4, "num_local_experts": 2, "head_dim": 8},
    }  # fmt: skip
    with pytest.raises(UserError, match=f"^{family}: {family} ") as refused:
        prove(tiny_model(family, **overrides[family]), family)
    assert "\n" not in str(refused.value)


def test_a_full_cache_is_not_told_to_forget() -> None:
    """Policies that forget are refused for it, so nobody is sent there."""
    verifier = cached_as(sd.ErrorWhenFull(max_tokens=10), tiny_model("qwen3_next"))
    with pytest.raises(UserError, match=r"the cache keeps 10$"):
        decoder_of(verifier, sd.NoProposer()).decode([sd.Request("a", random_ids(9, 1))])

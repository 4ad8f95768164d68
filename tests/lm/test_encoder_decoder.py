"""Encoder-decoder verifiers: every proposer writes what the stock model writes of a source."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
from torch import Tensor

import specdec as sd
from specdec.core.errors import UserError
from specdec.core.protocols import Proposer
from specdec.core.values import Draw
from specdec.lm.check import largest_error, prove
from specdec.lm.check_encoder_decoder import no_trees_of, tree_error
from specdec.lm.check_states import states_differ
from specdec.lm.encoder_decoder import EncoderDecoderLM
from specdec.lm.hf import HFCausalLM
from tests.support.asking import context
from tests.support.each_proposer import PROPOSERS
from tests.support.enumerated import written
from tests.support.families import noisy_copy, random_ids, tiny_model
from tests.support.marking import thorough
from tests.support.seq2seq import READS_TREES, SEQ2SEQ, generated, plain_logits, tiny_seq2seq
from tests.support.toy import (
    NO_END,
    ChoosingChain,
    ChoosingTree,
    Tokens,
    text_distribution,
    total_variation,
)

NEW = 20
FULL = ("t5", "bart", "marian")
SOURCES = [random_ids(12, 1), random_ids(3, 2), [7], random_ids(6, 4)]
EXACT = 1e-5


@cache
def model_of(family: str) -> Any:
    return tiny_seq2seq(family)


@cache
def expected(family: str) -> list[list[int]]:
    return [generated(model_of(family), source, NEW) for source in SOURCES]


def decoder_of(
    verifier: HFCausalLM,
    proposer: Proposer,
    temperature: float = 0.0,
    batch: int = 1,
    new: int = NEW,
) -> sd.SpeculativeDecoder:
    stopping = sd.Stopping(new, NO_END)
    return sd.SpeculativeDecoder(
        verifier, proposer, sd.Rejection(), sd.Sampling(temperature), stopping, batch
    )


def requests_of(verifier: EncoderDecoderLM) -> list[sd.Request]:
    named = enumerate(SOURCES)
    return [sd.Request(str(number), [*ids, verifier.start_id]) for number, ids in named]


def texts(decoder: sd.SpeculativeDecoder) -> list[list[int]]:
    assert isinstance(decoder.verifier, EncoderDecoderLM)
    return [list(trace.output_ids) for trace in decoder.decode(requests_of(decoder.verifier))]


PAIRS = [
    (family, proposer)
    for family in FULL
    for proposer in sorted(PROPOSERS)
    if family in READS_TREES or proposer not in ("draft_tree", "medusa", "corrected")
]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("family", "proposer"), PAIRS)
def test_all_proposers_write_what_generate_writes(family: str, proposer: str, batch: int) -> None:
    model = model_of(family)
    verifier, draft = EncoderDecoderLM(model), EncoderDecoderLM(noisy_copy(model, 0.05))
    decoder = decoder_of(verifier, PROPOSERS[proposer](verifier, draft), batch=batch)
    assert texts(decoder) == expected(family)


@pytest.mark.parametrize("family", sorted(SEQ2SEQ))
def test_families_are_proven(family: str) -> None:
    model = model_of(family)
    assert prove(model, family) < EXACT
    assert states_differ(model) is None
    assert (no_trees_of(model) is None) == (family in READS_TREES)
    verifier, draft = EncoderDecoderLM(model), EncoderDecoderLM(noisy_copy(model, 0.05))
    decoder = decoder_of(verifier, sd.DraftModel(draft, sd.Chain(3)), batch=3)
    assert texts(decoder) == expected(family)


def test_sources_and_their_cells_are_computed_once() -> None:
    model = model_of("bart")
    verifier = EncoderDecoderLM(model)
    calls = {"encoder": 0, "keys": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    layers = model.model.decoder.layers
    hooks = [model.model.encoder.register_forward_hook(count("encoder"))]
    hooks += [layer.encoder_attn.k_proj.register_forward_hook(count("keys")) for layer in layers]
    try:
        decoder_of(verifier, sd.NoProposer()).decode(requests_of(verifier)[:1])
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == {"encoder": 1, "keys": len(layers)}


def test_the_source_is_looked_up() -> None:
    """A text that copies its source is drafted from there at once."""
    source = list(range(10, 20))
    proposer = sd.NGram(3)
    text = [*source, 0, 10, 11]
    proposer.open(1, 64, 61)
    here = context(text, num_prompt_tokens=11)
    proposer.reset([here])
    (proposal,) = proposer.propose([here])
    assert proposal.tree.token_ids == (11, 12, 13, 14)


# --- distributions -------------------------------------------------------------------------------

V, LENGTH = 3, 3
SOURCE: Tokens = (2, 1, 2, 2)
TINY: Mapping[str, dict[str, Any]] = {
    "t5": {"vocab_size": V, "num_layers": 1, "num_decoder_layers": 1},
    "bart": {"vocab_size": V, "decoder_layers": 1},
}


@cache
def small(family: str) -> Any:
    return tiny_seq2seq(family, **TINY[family])


DRAFTS: Mapping[str, Callable[[Any], Proposer]] = {
    "none": lambda model: sd.NoProposer(),
    "ngram": lambda model: sd.NGram(2),
    "chain": lambda model: sd.DraftModel(
        EncoderDecoderLM(noisy_copy(model, 0.5)), ChoosingChain(2)
    ),
    "siblings": lambda model: sd.DraftModel(
        EncoderDecoderLM(noisy_copy(model, 0.5)), ChoosingTree((-1, 0, 0), Draw.IID)
    ),
}


@pytest.mark.parametrize(
    ("family", "drafts"),
    [
        (family, each) if (family, each) != ("bart", "siblings") else thorough(family, each)
        for family in TINY
        for each in DRAFTS
        if family != "t5" or each != "siblings"
    ],
)
def test_the_text_has_exactly_the_distribution(family: str, drafts: str) -> None:
    model = small(family)
    verifier = EncoderDecoderLM(model)
    decoder = decoder_of(verifier, DRAFTS[drafts](model), temperature=1.0, new=LENGTH)

    @cache
    def target(text: Tokens) -> Tensor:
        return plain_logits(model, SOURCE, text)[-1].double().softmax(dim=-1)

    aim = text_distribution(target, LENGTH, NO_END, (verifier.start_id,))
    found = total_variation(written(decoder, (*SOURCE, verifier.start_id)), aim)
    assert found < 1e-5, f"TV {found:.1e}"


# --- the encoder ---------------------------------------------------------------------------------


def with_fewer_layers(model: Any, other_encoder: bool = False) -> Any:
    """Make a draft of the first decoder layer, whose encoder is the verifier's or a noisy one."""
    draft = tiny_seq2seq("bart", decoder_layers=1)
    draft.load_state_dict(model.state_dict(), strict=False)
    if other_encoder:
        noisy = noisy_copy(model, 0.05)
        draft.model.encoder.load_state_dict(noisy.model.encoder.state_dict())
    return draft


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("other", [False, True])
def test_a_draft_with_the_same_encoder_shares_it(other: bool, batch: int) -> None:
    model = model_of("bart")
    verifier, draft = EncoderDecoderLM(model), EncoderDecoderLM(with_fewer_layers(model, other))
    decoder = decoder_of(verifier, sd.DraftModel(draft, sd.Chain(3)), batch=batch)
    read = list[int]()
    hooks = [
        each.model.model.encoder.register_forward_hook(
            lambda module, given, said: read.append(len(said.last_hidden_state))
        )
        for each in (verifier, draft)
    ]
    try:
        assert texts(decoder) == expected("bart")
    finally:
        for hook in hooks:
            hook.remove()
    assert sum(read) == len(SOURCES) * (1 + other)


# --- settings of generate() ----------------------------------------------------------------------

END = 6  # which comes early in two of the texts
SETTINGS: dict[str, dict[str, Any]] = {
    "forced_bos_token_id": {"forced_bos_token_id": 12},
    "forced_eos_token_id": {"forced_eos_token_id": END},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 2.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "min_length": {"min_length": 12},
    "min_new_tokens": {"min_new_tokens": 12},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(3, 40))},
}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_settings_look_at_what_generate_lets_them(name: str) -> None:
    settings = {**SETTINGS[name], "eos_token_id": [END]}
    model = tiny_seq2seq("bart")
    stock = [generated(model, source, NEW, **settings) for source in SOURCES]
    for option, value in settings.items():
        setattr(model.generation_config, option, value)
    verifier, draft = EncoderDecoderLM(model), EncoderDecoderLM(noisy_copy(model, 0.05))
    decoder = sd.SpeculativeDecoder(
        verifier,
        sd.DraftModel(draft, sd.Chain(3)),
        sd.Rejection(),
        sd.Sampling(0.0),
        sd.Stopping(NEW, frozenset({END})),
        batch=3,
    )
    assert texts(decoder) == stock
    assert stock != expected("bart"), "it changes nothing"


# --- limits, and what is refused -----------------------------------------------------------------


def test_a_text_ends_where_positions_do() -> None:
    model = tiny_seq2seq("bart", max_position_embeddings=16)
    verifier, draft = EncoderDecoderLM(model), EncoderDecoderLM(noisy_copy(model, 0.05))
    for proposer in (sd.NoProposer(), sd.DraftModel(draft, sd.Chain(3))):
        traces = decoder_of(verifier, proposer, batch=3, new=40).decode(requests_of(verifier))
        assert [trace.finish_reason for trace in traces] == ["context"] * len(SOURCES)
        for trace, source in zip(traces, SOURCES, strict=True):
            assert list(trace.output_ids) == generated(model, source, 15)
            assert trace.contexts[0] == len(source), "cells of the source, and none of the text"


def refusals() -> list[tuple[Callable[[], object], str]]:
    bart, t5 = EncoderDecoderLM(model_of("bart")), EncoderDecoderLM(model_of("t5"))
    llama = HFCausalLM(tiny_model("llama"))
    tree = sd.DraftModel(EncoderDecoderLM(model_of("t5")), sd.Sampled([2, 1], "iid"))
    plain = decoder_of(bart, sd.NoProposer())
    chain = sd.Chain(2)
    return [
        (lambda: plain.decode([sd.Request("a", [5, 6])]), "prompt a: it ends with 6; expected a"),
        (lambda: plain.decode([sd.Request("a", [2])]), "prompt a: its source is empty"),
        (
            lambda: plain.decode([sd.Request("a", [5] * 65 + [2])]),
            "prompt a: its 65 tokens do not fit the 64 of the encoder",
        ),
        (lambda: decoder_of(bart, sd.DraftModel(llama, chain)), "has no encoder, to read the"),
        (lambda: decoder_of(llama, sd.DraftModel(bart, chain)), "and the verifier has no source"),
        (
            lambda: decoder_of(t5, tree).decode([sd.Request("a", [5, 6, 0])]),
            "t5 cannot read trees, since its decoder knows positions by distances",
        ),
    ]


@pytest.mark.parametrize("number", range(6))
def test_what_cannot_be_is_refused_in_a_line(number: int) -> None:
    ask, message = refusals()[number]
    with pytest.raises(UserError) as refused:
        ask()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_proof_finds_a_model_that_forgets_its_source() -> None:
    """One whose cross-attention is made of another source than it was given."""
    model: Any = tiny_seq2seq("bart")
    proper = model.forward

    def forward(**given: Any) -> Any:
        if given.get("use_cache"):
            said = given["encoder_outputs"]
            said.last_hidden_state = said.last_hidden_state.roll(1, dims=0)
        return proper(**given)

    assert largest_error(model) < EXACT
    model.forward = forward
    assert largest_error(model) > 1e-2


def test_trees_are_proven_on_both_rows() -> None:
    assert tree_error(model_of("marian")) < EXACT

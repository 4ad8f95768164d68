"""What one tries first in a notebook works, or is one clear UserError."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import specdec

sd: Any = specdec  # whose types would refuse most of what is tried here


@pytest.fixture(scope="module")
def verifier(tiny: Any) -> Any:
    return sd.load(tiny.verifier)  # a Path


def decoder(verifier: Any, **options: Any) -> Any:
    stopping = sd.Stopping.of(verifier, max_new_tokens=6)
    parts = (verifier, sd.NGram(2), sd.Rejection(), sd.Sampling(0), stopping)
    return sd.SpeculativeDecoder(*parts, **options)


def test_bare_text_is_continued_as_it_stands(verifier: Any) -> None:
    (alone,) = decoder(verifier).decode("def add(")
    ids = verifier.encode("def add(")
    (decoded,) = decoder(verifier).decode([sd.Request("0", ids)])
    assert alone.output_ids == decoded.output_ids
    assert alone.prompt_id == "0"
    both = decoder(verifier).decode(["def add(", "print("])
    assert [trace.prompt_id for trace in both] == ["0", "1"]
    assert both[0].output_ids == alone.output_ids


def test_prompts_of_a_file_are_decoded_in_its_order(verifier: Any, tiny: Any) -> None:
    prompts = sd.load_prompts(tiny.prompts)
    traces = decoder(verifier, batch=2).decode(prompts)
    assert [trace.prompt_id for trace in traces] == ["add", "print", "text"]
    assert [trace.category for trace in traces] == ["code", "code", "text"]
    one = decoder(verifier).decode(prompts[1])
    assert [trace.output_ids for trace in one] == [traces[1].output_ids]


def test_a_later_turn_is_asked_after_the_decoders_own_answer(
    verifier: Any, empty_folder: Path
) -> None:
    Path("turns.jsonl").write_text('{"id": "t", "turns": ["def add(", "print("]}\n')
    first, second = decoder(verifier).decode(sd.load_prompts("turns.jsonl"))
    assert (first.turn, second.turn) == (0, 1)
    text = f"def add(\n\n{first.output_text}\n\nprint("  # of a model without a chat template
    assert first.output_text
    assert second.num_prompt_tokens == len(verifier.encode(text))


def test_nothing_is_decoded_to_nothing(verifier: Any) -> None:
    assert decoder(verifier).decode([]) == []


def test_unless_told_a_text_ends_at_the_verifiers_own_tokens_and_is_shown(verifier: Any) -> None:
    plain = sd.SpeculativeDecoder(verifier, sd.NoProposer(), sd.Rejection())
    assert plain.stopping.end_ids == verifier.end_ids
    short = sd.SpeculativeDecoder(
        verifier, sd.NoProposer(), sd.Rejection(), stopping=sd.Stopping(3)
    )
    (trace,) = short.decode("def add(")
    assert trace.output_text == verifier.decode(trace.output_ids)


def test_traces_are_summarized_as_their_tally_is(verifier: Any) -> None:
    traces = decoder(verifier).decode(["def add(", "print("])
    assert sd.summarize(traces) == sd.summarize(sd.Tally.of(traces))


WRONG: list[tuple[Callable[[Any], Any], str]] = [
    (lambda lm: decoder(lm).decode(5), "5: cannot be decoded; expected text, prompts"),
    (lambda lm: decoder(lm).decode([5]), "5: cannot be decoded"),
    (lambda lm: decoder(lm).decode([sd.Request("a", (1,)), "b"]), "cannot be decoded with"),
    (lambda lm: decoder(lm).decode(""), "no tokens; expected text"),
    (lambda lm: sd.SpeculativeDecoder("x", sd.NGram(2), sd.Rejection()), "verifier: builtins.str"),
    (lambda lm: sd.SpeculativeDecoder(lm.model, sd.NGram(2), sd.Rejection()), "expected sd.load"),
    (lambda lm: sd.SpeculativeDecoder(lm, "ngram", sd.Rejection()), "no proposer"),
    (lambda lm: sd.SpeculativeDecoder(lm, sd.NGram, sd.Rejection()), "NGram: a class; expected an"),
    (lambda lm: sd.SpeculativeDecoder(lm, sd.NGram(2), sd.Rejection), "Rejection: a class"),
    (lambda lm: sd.SpeculativeDecoder(lm, sd.NGram(2), sd.Rejection(), 0.7), "sampling=0.7"),
    (
        lambda lm: sd.SpeculativeDecoder(lm, sd.NGram(2), sd.Rejection(), stopping=64),
        "stopping=64: expected sd.Stopping.of",
    ),
    (lambda lm: sd.DraftModel("zoo:draft", sd.Chain(2)), "draft model: builtins.str"),
    (lambda lm: sd.DraftModel(lm, 4), "builtins.int: no tree"),
    (lambda lm: sd.Chain("4"), "gamma='4'"),
    (lambda lm: sd.load(5), "path=5"),
    (lambda lm: sd.load("zoo:verifier", device=0), "device=0"),
    (lambda lm: sd.Tally.of(decoder(lm).decode("a")[0]), "Trace: expected a list of traces"),
    (lambda lm: sd.summarize(5), "int: expected a list of traces"),
    (lambda lm: sd.load_prompts(["a"]), "prompts.path=['a']"),
    (
        lambda lm: sd.Medusa.load("zoo:medusa", "zoo:verifier", sd.Sparse([[0]])),
        "verifier: builtins.str",
    ),
]


@pytest.mark.parametrize(("call", "reason"), WRONG, ids=[reason for _, reason in WRONG])
def test_what_cannot_be_is_one_clear_line(
    verifier: Any, call: Callable[[Any], Any], reason: str
) -> None:
    with pytest.raises(sd.UserError, match=re.escape(reason)) as caught:
        call(verifier)
    assert "\n" not in str(caught.value)


def test_a_draft_of_another_vocabulary_is_refused(verifier: Any, tiny: Any) -> None:
    stranger = sd.DraftModel(sd.load(tiny.stranger), sd.Chain(2))
    with pytest.raises(sd.UserError, match="must share the verifier's tokenizer"):
        sd.SpeculativeDecoder(verifier, stranger, sd.Rejection())
    for path in (tiny.draft, tiny.padded):
        draft = sd.DraftModel(sd.load(path), sd.Chain(2))
        assert sd.SpeculativeDecoder(verifier, draft, sd.Rejection()).lossless


def test_heads_that_sit_on_another_model_are_refused(verifier: Any) -> None:
    zoo = sd.load("zoo:verifier")
    heads = sd.Medusa.load("zoo:medusa", zoo, sd.Sparse([[0]]))
    with pytest.raises(sd.UserError, match="Medusa: its heads sit on another model"):
        sd.SpeculativeDecoder(verifier, heads, sd.Rejection())
    assert sd.SpeculativeDecoder(sd.load("zoo:verifier"), heads, sd.Rejection()).lossless

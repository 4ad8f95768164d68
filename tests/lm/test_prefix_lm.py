"""Prefix-LM attention: decoding writes what the stock model says of whole texts with its mask."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec as sd
from specdec.core.errors import UserError
from specdec.core.protocols import Proposer
from specdec.decoding.turns import request_of
from specdec.lm import mask
from specdec.lm.check_prefix import prefix_error, require_two_ways
from specdec.lm.fingerprint import differences, fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.lm.mask import PREFIX_LM
from specdec.lm.prefix_lm import PrefixLM, RecomputingPrefixLM
from specdec.prompts import Message, Prompt
from specdec.recording.hidden_states import States
from specdec.recording.pit_values import Decoded, transforms
from specdec.recording.scoring import score
from specdec.recording.texts import Text
from tests.lm.test_cache_policies import DRAFTS
from tests.support.each_proposer import PROPOSERS
from tests.support.enumerated import written
from tests.support.families import (
    FAMILIES,
    WINDOWED,
    noisy_copy,
    random_ids,
    tiny_model,
)
from tests.support.marking import thorough
from tests.support.toy import (
    NO_END,
    Tokens,
    text_distribution,
    total_variation,
)
from tests.support.uncompiled import without_compiler

PROMPTS = [random_ids(14, 1), random_ids(2, 2), [7], random_ids(5, 4)]
NEW = 12


def seen(num_prompt: int, length: int) -> Tensor:  # [T, T] bool
    """Write down what each token sees."""
    return torch.tensor(
        [[key <= query or max(key, query) < num_prompt for key in range(length)]
         for query in range(length)]
    )  # fmt: skip


@torch.inference_mode()
def reference(model: Any, num_prompt: int, text: Sequence[int], **more: Any) -> Any:
    """Ask the stock model about a whole text, with a mask that is written down here."""
    allowed = seen(num_prompt, len(text))
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    ids = torch.tensor([list(text)])
    places = torch.arange(len(text))[None]
    given = {"attention_mask": mask[None, None], "position_ids": places}
    return model(input_ids=ids, use_cache=False, **given, **more)


@cache
def expected(family: str) -> list[list[int]]:
    """Write greedily by the reference."""
    found = list[list[int]]()
    for prompt in PROMPTS:
        text = list(prompt)
        for _ in range(NEW):
            said = reference(tiny_model(family), len(prompt), text).logits[0, -1]
            text.append(int(said.argmax()))
        found.append(text[len(prompt) :])
    return found


def texts(
    verifier: HFCausalLM, proposer: Proposer, batch: int = 1, prompts: Sequence[list[int]] = PROMPTS
) -> list[list[int]]:
    return [list(trace.output_ids) for trace in traces(verifier, proposer, batch, prompts)]


def traces(
    verifier: HFCausalLM, proposer: Proposer, batch: int = 1, prompts: Sequence[list[int]] = PROMPTS
) -> list[Any]:
    stopping, greedy = sd.Stopping(NEW, NO_END), sd.Sampling(0.0)
    decoder = sd.SpeculativeDecoder(verifier, proposer, sd.Rejection(), greedy, stopping, batch)
    return decoder.decode([sd.Request(str(n), prompt) for n, prompt in enumerate(prompts)])


def draft_of(model: Any, kind: type[HFCausalLM] = HFCausalLM) -> HFCausalLM:
    return kind(noisy_copy(model, 0.05))


def test_the_mask_is_that_of_a_prompt_and_what_follows() -> None:
    found = mask.prefix_lm(torch.tensor([2, 5, 1]), 5)
    for row, num_prompt in zip(found, (2, 5, 1), strict=True):
        assert torch.equal(row, seen(num_prompt, 5))


@pytest.mark.parametrize("kind", [PrefixLM, RecomputingPrefixLM])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("proposer", sorted(PROPOSERS))
def test_all_proposers_write_what_the_stock_model_says_with_the_mask(
    proposer: str, batch: int, kind: type[HFCausalLM]
) -> None:
    model = tiny_model("llama")
    verifier = kind(model)
    made = PROPOSERS[proposer](verifier, draft_of(model))
    assert texts(verifier, made, batch) == expected("llama")


def test_the_mask_matters() -> None:
    """Or all others would prove nothing."""
    written = texts(HFCausalLM(tiny_model("llama")), sd.NoProposer())
    assert [a == b for a, b in zip(written, expected("llama"), strict=True)].count(False) >= 2
    assert written[2] == expected("llama")[2], "a prompt of one token"


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - WINDOWED))
def test_so_do_all_families_without_windows(family: str) -> None:
    model = tiny_model(family)
    assert prefix_error(model, family) < 1e-4
    verifier = PrefixLM(model)
    made = PROPOSERS["draft_tree"](verifier, draft_of(model))
    assert texts(verifier, made, 3) == expected(family)


@pytest.mark.parametrize("proposer", ["none", "draft_model", "draft_tree"])
def test_programs_write_the_same(proposer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_compiler(monkeypatch)
    model = tiny_model("llama")
    verifier = PrefixLM(model, runtime="compiled")
    made = PROPOSERS[proposer](verifier, draft_of(model))
    assert texts(verifier, made, 3) == expected("llama")


def test_a_draft_may_read_prompts_in_the_same_way() -> None:
    """The verifier itself, as a draft, is right about everything; a causal one is not."""
    model = tiny_model("llama")
    rates = list[int]()
    for kind in (PrefixLM, HFCausalLM):
        proposer = sd.DraftModel(kind(model), sd.Chain(3))
        found = traces(PrefixLM(model), proposer, 3)
        assert [list(trace.output_ids) for trace in found] == expected("llama")
        rates.append(sum(len(trace.steps) for trace in found))
    assert rates[0] == len(PROMPTS) * NEW // 4 < rates[1]


def test_prompts_longer_than_a_chunk_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.lm.hf.PREFILL_CHUNK", 3)
    verifier = PrefixLM(tiny_model("llama"))
    assert texts(verifier, sd.NGram(3), 4) == expected("llama")
    verifier.open(2, 20)
    verifier.begin([0, 1], PROMPTS[:2])
    assert verifier.num_calls == 2, "one row at a time"


def test_the_prompt_of_a_later_turn_is_all_before_its_answer() -> None:
    verifier = sd.load("zoo:verifier", attention=PREFIX_LM)
    turns = ((Message("user", "def add(a, b):"),), (Message("user", "    return a +"),))
    prompt = Prompt("talk", "", turns)
    parts = (sd.NGram(3), sd.Rejection(), sd.Sampling(0.0), sd.Stopping(6, NO_END))
    first, second = sd.SpeculativeDecoder(verifier, *parts).decode([prompt])
    assert (first.turn, second.turn) == (0, 1)
    text = list(request_of(prompt, [first.output_text], verifier).token_ids)
    num_prompt = len(text)
    for token in second.output_ids:
        said = reference(verifier.model, num_prompt, text).logits[0, -1]
        assert int(said.argmax()) == token
        text.append(token)


V, LENGTH = 3, 3
PROMPT: Tokens = (2, 0, 1, 2)


@cache
def small_model() -> Any:
    return tiny_model("llama", vocab_size=V)  # of two layers: with one the mask would not matter


@pytest.mark.parametrize("kind", [PrefixLM, thorough(RecomputingPrefixLM)])
@pytest.mark.parametrize("drafts", [*sorted(DRAFTS.keys() - {"siblings"}), thorough("siblings")])
def test_the_text_has_exactly_the_distribution_with_the_mask(
    drafts: str, kind: type[HFCausalLM]
) -> None:
    verifier, stopping = kind(small_model()), sd.Stopping(LENGTH, NO_END)
    decoder = sd.SpeculativeDecoder(
        verifier, DRAFTS[drafts](), sd.Rejection(), sd.Sampling(1.0), stopping
    )

    def aim(num_prompt: int) -> dict[Tokens, float]:
        @cache
        def target(tokens: Tokens) -> Tensor:
            said = reference(small_model(), num_prompt, tokens).logits[0, -1]
            return said.double().softmax(dim=-1)

        return text_distribution(target, LENGTH, NO_END, PROMPT)

    found = written(decoder, PROMPT)
    assert total_variation(found, aim(len(PROMPT))) < 1e-5
    assert total_variation(found, aim(1)) > 1e-3, "a causal model writes otherwise"


def recorded() -> list[Text]:
    pairs = zip(PROMPTS, expected("llama"), strict=True)
    return [
        Text(str(n), "", 0, tuple(prompt), tuple(output), (), "length", NEW)
        for n, (prompt, output) in enumerate(pairs)
    ]


@pytest.mark.parametrize("kind", [PrefixLM, RecomputingPrefixLM])
def test_texts_are_scored_and_read_with_the_mask(kind: type[HFCausalLM]) -> None:
    model, given = tiny_model("llama"), recorded()
    verifier = kind(model)
    states = States(verifier)
    for scored in score(given, verifier, sd.Sampling(1.0), 4):
        text = scored.text
        whole = [*text.prompt_ids, *text.output_ids]
        place = len(text.prompt_ids) - 1
        stock = reference(model, place + 1, whole, output_hidden_states=True)
        log_p = stock.logits[0, place:-1].log_softmax(dim=-1)
        own = log_p.gather(1, torch.tensor(text.output_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(text.log_p), own, atol=1e-4, rtol=1e-4)
        found = states.of(text, ["final", 0], given[int(text.prompt_id) :])
        torch.testing.assert_close(found["final"], stock.hidden_states[-1][0, :-1])
        torch.testing.assert_close(found[0], stock.hidden_states[1][0, :-1])


def test_tokens_are_placed_in_the_distribution_with_the_mask() -> None:
    """At temperature 0, where a token of another text has no place at all."""
    model = tiny_model("llama")
    decoded = [Decoded(text.prompt_id, text.prompt_ids, text.output_ids) for text in recorded()]
    greedy = sd.Sampling(0.0)
    impossible = [
        sum(int((found == 1).sum()) for found in transforms(decoded, kind(model), greedy))
        for kind in (PrefixLM, RecomputingPrefixLM, HFCausalLM)
    ]
    assert impossible[:2] == [0, 0]
    assert impossible[2] > 0, "read as a causal model would"


def test_it_is_another_verifier_to_recordings_and_heads() -> None:
    verifier = sd.load("zoo:draft", attention=PREFIX_LM)
    assert isinstance(verifier, PrefixLM)
    plain = sd.load("zoo:draft")
    assert plain.model is verifier.model, "the weights are shared"
    assert differences(fingerprint(verifier), fingerprint(plain)) == ["config"]
    assert verifier.attention == "prefix_lm by sdpa"


def test_a_model_that_never_looks_ahead_is_refused() -> None:
    model = tiny_model("llama")
    forward = model.forward

    def blind(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask is not None:
            places = torch.arange(attention_mask.shape[-1])
            last = attention_mask.shape[-1] - kwargs["input_ids"].shape[1]
            queries = places[last:, None]
            attention_mask = attention_mask.masked_fill(places > queries, -1e30)
        return forward(*args, attention_mask=attention_mask, **kwargs)

    vars(model)["forward"] = blind
    with pytest.raises(UserError, match="lets no token see those behind it"):
        prefix_error(model, "path='m'")


@pytest.mark.parametrize("mistake", ["chunks", "causal"])
def test_the_proof_finds_mistakes(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts without their last token, or read from left to right."""
    read = PrefixLM._begin

    def wrong(self: PrefixLM, rows: Any, prompts: Any, layers: Any) -> Any:
        if mistake == "causal":
            return self.prefill(rows, [prompt[:-1] for prompt in prompts], layers)
        found = read(self, rows, [prompt[:-1] for prompt in prompts], layers)
        for row, prompt in zip(rows, prompts, strict=True):
            self._cache.lengths[row] = len(prompt) - 1
        return found

    monkeypatch.setattr(PrefixLM, "_begin", wrong)
    with pytest.raises(UserError, match=r"attention='prefix_lm': qwen2 is not supported"):
        prefix_error(tiny_model("qwen2"), mistake)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("mistral", r"^m: attention='prefix_lm': mistral has layers that see 6 tokens back"),
        ("gemma3_text", r"^m: attention='prefix_lm': gemma3_text has layers that see"),
        ("mamba2", r"^m: attention='prefix_lm': mamba2 has recurrent layers"),
        ("lfm2", r"^m: attention='prefix_lm': lfm2 has recurrent layers"),
    ],
)
def test_models_that_cannot_are_refused_in_a_line(family: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        require_two_ways(tiny_model(family).config, "m")
    assert "\n" not in str(refused.value)
    require_two_ways(tiny_model("qwen2").config, "m")


REFUSED = [
    ({"cache": sd.SlidingWindow(max_tokens=8)}, r"^attention='prefix_lm': the cells of a prompt"),
    ({"cache": sd.Clear(max_tokens=8)}, r"^attention='prefix_lm': the cells of a prompt"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_cannot_be_is_refused_in_a_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        sd.load("zoo:draft", attention=PREFIX_LM, **options)
    assert "\n" not in str(refused.value)

"""Caches of bounded size, and none: the verifier under its policy is what decoding keeps to."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec as sd
from specdec.cache.policy import CachePolicy
from specdec.core.errors import UserError
from specdec.core.protocols import Proposer
from specdec.core.values import Draw
from specdec.lm.accounting import cells_of
from specdec.lm.cached_as import cached_as
from specdec.lm.hf import HFCausalLM
from tests.support.each_proposer import PROPOSERS
from tests.support.enumerated import written
from tests.support.families import noisy_copy, plain_logits, random_ids, tiny_model
from tests.support.marking import thorough
from tests.support.toy import (
    NO_END,
    ChoosingChain,
    ChoosingTree,
    Tokens,
    text_distribution,
    total_variation,
)
from tests.support.uncompiled import without_compiler
from tests.support.uniform import drawn_texts, fallen

Policy = CachePolicy | str | None
Reference = Callable[[Any, Sequence[int]], Tensor]  # model, text -> logits [V] of the next token


def windowed(near: int, first: int, model: Any, text: Sequence[int]) -> Tensor:
    """Ask the stock model about whole texts, with a mask that is written down here."""
    places = torch.arange(len(text))
    distance = places[:, None] - places[None, :]
    seen = (distance >= 0) & ((distance < near) | (places < first)[None, :])
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    ids = torch.tensor([list(text)])
    return model(input_ids=ids, attention_mask=mask[None, None], use_cache=False).logits[0, -1]


def cleared(limit: int, again: int, model: Any, text: Sequence[int]) -> Tensor:
    """Read token by token, and start anew whenever there are `limit` cells."""
    cells: list[int] = []
    for token in text:
        if len(cells) == limit:
            cells = cells[len(cells) - again :]
        cells.append(token)
    return plain_logits(model, cells)[-1]


def whole(model: Any, text: Sequence[int]) -> Tensor:
    return plain_logits(model, text)[-1]


POLICIES: Mapping[str, tuple[Policy, Reference]] = {
    "none": ("none", whole),
    "enough": (sd.ErrorWhenFull(max_tokens=64), whole),
    "window": (sd.SlidingWindow(max_tokens=8), partial(windowed, 8, 0)),
    "window of 2": (sd.SlidingWindow(max_tokens=2), partial(windowed, 2, 0)),
    "first two and a window": (sd.SlidingWindow(7, keep_first=2), partial(windowed, 5, 2)),
    "first six and itself": (sd.SlidingWindow(7, keep_first=6), partial(windowed, 1, 6)),
    "cleared": (sd.Clear(max_tokens=9, read_again=4), partial(cleared, 9, 4)),
    "cleared of all": (sd.Clear(max_tokens=5, read_again=0), partial(cleared, 5, 0)),
    "cleared of one": (sd.Clear(max_tokens=6, read_again=5), partial(cleared, 6, 5)),
}
PROMPTS = [random_ids(14, 1), random_ids(2, 2), [7], random_ids(5, 4)]


def lm_of(model: Any, policy: Policy, runtime: str = "eager") -> HFCausalLM:
    return cached_as(policy, model, None, None, None, None, runtime)


def decoder_of(
    verifier: HFCausalLM,
    proposer: Proposer,
    temperature: float = 0.0,
    batch: int = 1,
    new: int = 20,
) -> sd.SpeculativeDecoder:
    stopping = sd.Stopping(new, NO_END)
    return sd.SpeculativeDecoder(
        verifier, proposer, sd.Rejection(), sd.Sampling(temperature), stopping, batch
    )


def texts(decoder: sd.SpeculativeDecoder) -> list[list[int]]:
    requests = [sd.Request(str(number), prompt) for number, prompt in enumerate(PROMPTS)]
    return [list(trace.output_ids) for trace in decoder.decode(requests)]


@cache
def expected(family: str, name: str) -> list[list[int]]:
    """Write greedily by the reference."""
    model, found = tiny_model(family), list[list[int]]()
    with torch.inference_mode():
        for prompt in PROMPTS:
            text = list(prompt)
            for _ in range(20):
                text.append(int(POLICIES[name][1](model, text).argmax()))
            found.append(text[len(prompt) :])
    return found


@pytest.mark.parametrize("name", sorted(POLICIES))
@pytest.mark.parametrize("batch", [thorough(1), 3])
@pytest.mark.parametrize("proposer", sorted(PROPOSERS))
def test_all_proposers_write_what_the_policy_says(proposer: str, batch: int, name: str) -> None:
    model = tiny_model("llama")
    verifier, draft = lm_of(model, POLICIES[name][0]), HFCausalLM(noisy_copy(model, 0.05))
    decoder = decoder_of(verifier, PROPOSERS[proposer](verifier, draft), batch=batch)
    assert texts(decoder) == expected("llama", name)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("family", "name"),
    [
        *product(["gpt2", "qwen2_moe"], ["none", "first two and a window", "cleared"]),
        # Whose layers have windows of their own, which the mask of the reference has not.
        *product(["phi3", "gpt_oss", "gemma3_text"], ["none", "cleared"]),
    ],
)
def test_so_do_other_families(family: str, name: str) -> None:
    model = tiny_model(family)
    verifier, draft = lm_of(model, POLICIES[name][0]), HFCausalLM(noisy_copy(model, 0.05))
    decoder = decoder_of(verifier, PROPOSERS["draft_tree"](verifier, draft), batch=3)
    assert texts(decoder) == expected(family, name)


@pytest.mark.parametrize("name", ["first two and a window", "cleared", "cleared of all"])
@pytest.mark.parametrize("proposer", ["none", "draft_model", "draft_tree"])
def test_programs_write_the_same(proposer: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_compiler(monkeypatch)
    model = tiny_model("llama")
    verifier = lm_of(model, POLICIES[name][0], "compiled")
    draft = HFCausalLM(noisy_copy(model, 0.05))
    decoder = decoder_of(verifier, PROPOSERS[proposer](verifier, draft), batch=3)
    assert texts(decoder) == expected("llama", name)


def test_a_window_is_that_of_generate() -> None:
    """What transformers calls a sliding window, of the same weights."""
    windowed_model: Any = tiny_model("mistral", sliding_window=8)
    plain: Any = tiny_model("mistral", sliding_window=None)
    plain.load_state_dict(windowed_model.state_dict())
    verifier = lm_of(plain, sd.SlidingWindow(max_tokens=8))
    draft = HFCausalLM(noisy_copy(plain, 0.05))
    found = texts(decoder_of(verifier, sd.DraftModel(draft, sd.Chain(3))))
    for prompt, text in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        stock = windowed_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert stock[0, len(prompt) :].tolist() == text


V, LENGTH = 3, 4
PROMPT: Tokens = (2, 0, 1, 2)
SMALL = tiny_model("llama", vocab_size=V, num_hidden_layers=1)
EXACT: Mapping[str, tuple[Policy, Reference]] = {
    "none": ("none", whole),
    "window": (sd.SlidingWindow(3, keep_first=1), partial(windowed, 2, 1)),
    "cleared": (sd.Clear(max_tokens=5, read_again=2), partial(cleared, 5, 2)),
}
DRAFTS: Mapping[str, Callable[[], Proposer]] = {
    "none": sd.NoProposer,
    "ngram": lambda: sd.NGram(2),
    "chain": lambda: sd.DraftModel(HFCausalLM(noisy_copy(SMALL, 0.5)), ChoosingChain(2)),
    "siblings": lambda: sd.DraftModel(
        HFCausalLM(noisy_copy(SMALL, 0.5)), ChoosingTree((-1, 0, 0), Draw.IID)
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(EXACT))
@pytest.mark.parametrize("drafts", sorted(DRAFTS))
def test_the_text_has_exactly_the_distribution_under_the_policy(drafts: str, name: str) -> None:
    policy, reference = EXACT[name]
    decoder = decoder_of(lm_of(SMALL, policy), DRAFTS[drafts](), temperature=1.0, new=LENGTH)

    @cache
    def target(tokens: Tokens) -> Tensor:
        return reference(SMALL, tokens).double().softmax(dim=-1)

    with torch.inference_mode():
        aim = text_distribution(target, LENGTH, NO_END, PROMPT)
    found = total_variation(written(decoder, PROMPT), aim)
    assert found < 1e-5, f"TV {found:.1e}"


@pytest.mark.parametrize("policy", [sd.SlidingWindow(40, keep_first=3), sd.Clear(40, read_again=9)])
def test_memory_does_not_grow_with_the_text(policy: CachePolicy) -> None:
    verifier = lm_of(tiny_model("llama"), policy)
    sizes = list[tuple[int, int]]()
    for new in (100, 200):
        decoder = decoder_of(verifier, sd.NGram(3), new=new)
        decoder.decode([sd.Request("a", random_ids(20, 3))])
        sizes.append((verifier._cache.lengths[0], verifier._cache.buffers(range(1), 1)[0].shape[2]))
    assert all(length <= 40 + 32 for length, _ in sizes)
    assert sizes[0][1] == sizes[1][1]
    assert sizes[1][1] <= 40 + 64, "what is kept, what waits to be dropped, and a step"


def test_bytes_are_those_of_all_layers() -> None:
    model = tiny_model("llama")
    config = model.config
    size = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert sum(each.cell_bytes for each in cells_of(model)) == size
    assert sd.SlidingWindow(max_bytes=10 * size + 1).limit(size) == 10
    assert sd.SlidingWindow(max_bytes="1MiB").limit(size) == 2**20 // size
    assert sd.Clear(max_tokens=5, max_bytes="1GB").limit(size) == 5


REFUSED: Sequence[tuple[Callable[[], object], str]] = [
    (lambda: sd.SlidingWindow(max_tokens=0), r"^max_tokens=0: expected an integer >= 2"),
    (lambda: sd.Clear(max_bytes="much"), r"^max_bytes='much': expected bytes"),
    (lambda: sd.Clear(max_bytes=True), r"^max_bytes=True: expected bytes"),
    (lambda: sd.SlidingWindow(4, keep_first=4), r"^keep_first=4: expected less than the 4 cells"),
    (lambda: sd.Clear(4, read_again=4), r"^read_again=4: expected less than the 4 cells"),
    (lambda: sd.SlidingWindow(max_bytes=9).limit(8), r"^cache.max_bytes=9: expected room for 2"),
    (lambda: sd.load("zoo:verifier", cache="kv"), r"^cache='kv': expected none, or a policy"),
    (
        lambda: sd.load("zoo:verifier", cache="none", runtime="compiled"),
        r"^cache='none': whole texts are read by runtime=eager",
    ),
]


@pytest.mark.parametrize(("ask", "message"), REFUSED)
def test_what_cannot_be_is_refused_in_a_line(ask: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        ask()
    assert "\n" not in str(refused.value)


def test_what_might_not_fit_is_refused_before_anything_is_decoded() -> None:
    verifier = lm_of(tiny_model("llama"), sd.ErrorWhenFull(max_tokens=20))
    decoder_of(verifier, sd.NoProposer(), new=7).check([sd.Request("a", random_ids(14, 1))])
    with pytest.raises(UserError, match="may need 21 cells, and the cache keeps 20") as refused:
        decoder_of(verifier, sd.NoProposer(), new=8).decode([sd.Request("a", random_ids(14, 1))])
    assert "cache=sliding_window" in str(refused.value)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["none", "first two and a window", "cleared"])
@pytest.mark.parametrize("proposer", ["medusa", "chained", "draft_tree"])
def test_texts_of_heads_fall_where_the_policy_says(proposer: str, name: str) -> None:
    """Probability integral transforms at T=1: too many states to enumerate heads."""
    model = tiny_model("llama")
    verifier, reader = (lm_of(model, POLICIES[name][0]) for _ in range(2))
    draft = HFCausalLM(noisy_copy(model, 0.3))
    decoder = decoder_of(verifier, PROPOSERS[proposer](verifier, draft), 1.0, batch=3, new=30)
    texts = drawn_texts(decoder)
    found = fallen(texts, reader)
    assert found.num_impossible == 0
    assert found.p_value > 1e-4, f"p {found.p_value:.1e}"
    wrong = fallen(texts, HFCausalLM(noisy_copy(model, 0.5)))
    assert wrong.p_value < 1e-4, "too few tokens to tell another model"

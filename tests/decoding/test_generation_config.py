"""What a checkpoint's generation configuration asks for is done, as `generate()` does it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, RepetitionPenaltyLogitsProcessor

from specdec.core.errors import UserError
from specdec.core.outcome import Outcome
from specdec.core.protocols import Proposer
from specdec.core.sampling import HEEDED, Sampling
from specdec.core.trace import Trace
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.generation import REFUSED, heeded, notes, recommended
from specdec.lm.hf import HFCausalLM
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.ngram import NGram
from specdec.proposer.none import NoProposer
from specdec.tree.chain import Chain
from specdec.tree.dynamic import Dynamic
from specdec.tree.sampled import Sampled
from specdec.verification.rejection import Rejection
from tests.support.families import noisy_copy, random_ids, tiny_model

MAX_NEW_TOKENS = 20
END = 44  # which comes early in two of the texts
PROMPTS = [random_ids(num, seed=num) for num in (1, 4, 9, 15)]  # ragged, one of a single token
# What changes the greedy texts of the model below; each alone, and some together.
SETTINGS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.8},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[11], [3, 5], [END]]},
    "sequence_bias": {"sequence_bias": [[[3], 4.0], [[5, 3], -9.0]]},
    "min_length": {"min_length": 12},
    "min_new_tokens": {"min_new_tokens": 12},
    "forced_bos_token_id": {"forced_bos_token_id": 12},
    "forced_eos_token_id": {"forced_eos_token_id": END},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [3, 1.4]},
    "suppress_tokens": {"suppress_tokens": [3, 5, 9, 11, 20]},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(40))},
    "remove_invalid_values": {"remove_invalid_values": True},
    "several": {
        "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 8,
        "suppress_tokens": [5], "begin_suppress_tokens": [9], "forced_eos_token_id": END,
    },
}  # fmt: skip
assert {name for settings in SETTINGS.values() for name in settings} == set(HEEDED)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def draft(model: PreTrainedModel) -> HFCausalLM:
    return HFCausalLM(noisy_copy(model, 0.05))


PROPOSERS: dict[str, Callable[[HFCausalLM], Proposer]] = {
    "none": lambda draft: NoProposer(),
    "ngram": lambda draft: NGram(3),
    "chain": lambda draft: DraftModel(draft, Chain(4)),
    "tree": lambda draft: DraftModel(draft, Dynamic(7, 4)),
}


def generated(model: Any, settings: dict[str, Any]) -> list[tuple[int, ...]]:
    """Let transformers write each text."""
    texts: list[tuple[int, ...]] = []
    for prompt in PROMPTS:
        input_ids = torch.tensor([list(prompt)])
        options: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "eos_token_id": [END]}
        output = model.generate(
            input_ids, do_sample=False, pad_token_id=0, **options, **settings,
            attention_mask=torch.ones_like(input_ids),
        )  # fmt: skip
        texts.append(tuple(output[0, len(prompt) :].tolist()))
    return texts


def decoded(verifier: HFCausalLM, proposer: Proposer, **settings: Any) -> list[tuple[int, ...]]:
    stopping = Stopping(MAX_NEW_TOKENS, frozenset({END}))
    sampling = Sampling(0, **settings)
    decoder = SpeculativeDecoder(verifier, proposer, Rejection(), sampling, stopping, batch=3)
    requests = [Request(str(number), prompt) for number, prompt in enumerate(PROMPTS)]
    return [trace.output_ids for trace in decoder.decode(requests)]


@pytest.mark.parametrize("name", SETTINGS)
def test_greedy_text_is_that_of_generate(
    model: PreTrainedModel, draft: HFCausalLM, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    settings = SETTINGS[name]
    expected = generated(model, settings)
    if name not in ("remove_invalid_values", "min_length"):
        assert expected != generated(model, {}), "it changes nothing, so it tests nothing"
    verifier = HFCausalLM(model)
    for make in PROPOSERS.values():
        assert decoded(verifier, make(draft), **settings) == expected, "as options"
    for field, value in settings.items():
        monkeypatch.setattr(model.generation_config, field, value)
    for make in PROPOSERS.values():
        assert decoded(verifier, make(draft)) == expected, "as the checkpoint's"
    assert decoded(verifier, NoProposer(), from_checkpoint=False) == generated(
        model, dict.fromkeys(settings)
    )


def test_drafts_use_the_processors_too(model: PreTrainedModel) -> None:
    """A draft that is its verifier is right all the time, at whatever temperature."""
    verifier, draft = HFCausalLM(model), HFCausalLM(model)
    for tree, temperature in (
        (Chain(4), 0),
        (Chain(4), 1),
        (Sampled([2, 1], "without_replacement"), 1),
        (Dynamic(6, 3), 0),
    ):
        settings = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2}
        decoder = SpeculativeDecoder(
            verifier,
            DraftModel(draft, tree),
            Rejection(),
            Sampling(temperature, **settings),
            Stopping(MAX_NEW_TOKENS),
            batch=2,
        )
        for trace in decoder.decode([Request(str(n), ids) for n, ids in enumerate(PROMPTS)]):
            assert all(step.outcome in (Outcome.BONUS, Outcome.ENDED) for step in trace.steps)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_applied_is_refused_by_name(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(model.generation_config, name, 4, raising=False)
    with pytest.raises(UserError, match=f"{name}=4 cannot be applied .*from_checkpoint=false"):
        heeded(Sampling(0), HFCausalLM(model))
    assert heeded(Sampling(0, from_checkpoint=False), HFCausalLM(model)).processors == ()


def test_filters_of_sampled_text_are_refused_where_text_is_sampled(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("typical_p", 0.9), ("do_sample", True), ("top_p", 0.8)):
        monkeypatch.setattr(model.generation_config, name, value)
    heeded(Sampling(0), HFCausalLM(model))
    with pytest.raises(UserError, match=r"typical_p=0\.9 cannot be applied"):
        heeded(Sampling(1), HFCausalLM(model))
    assert recommended(HFCausalLM(model))["top_p"] == 0.8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", -1.0),
        ("repetition_penalty", "much"),
        ("no_repeat_ngram_size", 1.5),
        ("bad_words_ids", [3]),
        ("bad_words_ids", [[10**6]]),
        ("suppress_tokens", 3),
        ("min_new_tokens", -3),
        ("exponential_decay_length_penalty", [3]),
        ("sequence_bias", [[3, 1.0]]),
    ],
)
def test_a_setting_of_nonsense_is_named(model: PreTrainedModel, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"sampling\.{name}="):
        heeded(Sampling(0, **{name: value}), HFCausalLM(model), frozenset({END}))


def test_done_twice_it_is_done_once(model: PreTrainedModel) -> None:
    once = heeded(Sampling(0, repetition_penalty=1.3), HFCausalLM(model), frozenset({END}))
    assert heeded(once, HFCausalLM(model)) == once
    assert len(once.processors) == 1


class Boost:
    """A processor of one's own: after `token` it is likelier to come again."""

    def __init__(self, token: int, by: float):
        self.token, self.by = token, by

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self.token] += self.by * (input_ids == self.token).sum(dim=1)
        return scores


class Counting:
    """What a processor must not be: it answers by how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        return scores + self.calls * torch.arange(scores.shape[1])


def mixing(input_ids: Tensor, scores: Tensor) -> Tensor:
    """Look at the other texts of the batch."""
    return scores + scores.mean(dim=0)


def of_another_shape(input_ids: Tensor, scores: Tensor) -> Tensor:
    return scores[:, :-1]


def test_processors_of_ones_own(model: PreTrainedModel, draft: HFCausalLM) -> None:
    own = [Boost(3, 6.0), RepetitionPenaltyLogitsProcessor(1.2)]
    expected = generated(model, {"logits_processor": LogitsProcessorList(own)})
    assert expected != generated(model, {})
    for make in PROPOSERS.values():
        assert decoded(HFCausalLM(model), make(draft), processors=own) == expected


@pytest.mark.parametrize(
    ("processor", "named"),
    [
        (Counting(), "Counting is no function of the tokens before"),
        (mixing, "mixing is no function of the tokens before"),
        (of_another_shape, "of_another_shape cannot be used"),
        (Boost(10**6, 1.0), "Boost cannot be used"),
        (Boost, "no logits processor"),
        (3, "no logits processor"),
    ],
)
def test_what_is_no_processor_is_refused(
    model: PreTrainedModel, processor: Any, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        heeded(Sampling(1, processors=[processor]), HFCausalLM(model))


def test_what_is_done_and_what_is_not_is_said(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("do_sample", True), ("temperature", 0.7), ("repetition_penalty", 1.1)):
        monkeypatch.setattr(model.generation_config, name, value)
    verifier = HFCausalLM(model)
    said = "generation_config.json recommends temperature=0.7; this samples with temperature=1"
    processed = "logits are processed: repetition_penalty=1.1"
    assert notes(heeded(Sampling(1), verifier), verifier) == [processed, said]
    assert notes(heeded(Sampling(0.7), verifier), verifier) == [processed]
    assert notes(heeded(Sampling(0), verifier), verifier) == [processed]
    assert notes(heeded(Sampling(0, repetition_penalty=1), verifier), verifier) == []


def test_log_probabilities_are_the_models_own(model: PreTrainedModel, draft: HFCausalLM) -> None:
    """Before processors and temperature, whatever was proposed."""
    sampling = Sampling(0.7, repetition_penalty=1.4)
    for make in PROPOSERS.values():
        decoder = SpeculativeDecoder(
            HFCausalLM(model), make(draft), Rejection(), sampling, Stopping(12), 3, log_probs=True
        )
        for prompt, trace in zip(
            PROMPTS,
            decoder.decode([Request(str(n), ids) for n, ids in enumerate(PROMPTS)]),
            strict=True,
        ):
            said = [each for step in trace.steps for each in step.log_probs]
            text = torch.tensor([[*prompt, *trace.output_ids]])
            distributions = model(text).logits[0].log_softmax(dim=-1)
            places = range(len(prompt) - 1, text.shape[1] - 1)
            assert said == pytest.approx(distributions[places, trace.output_ids].tolist(), abs=1e-4)
            assert Trace.from_row(trace.to_row()) == trace

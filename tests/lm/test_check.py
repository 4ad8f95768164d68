"""The proof at load time: right models pass, and no wrong one is ever served.

What passes and what is refused among all decoders of transformers was tried by hand (189 model
types, transformers 5.23); here are a few of each kind.
"""

from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaModel, PreTrainedModel

from specdec.core.errors import UserError
from specdec.lm.cache import cache_word
from specdec.lm.check import own_spread, prove
from specdec.lm.hf import HFCausalLM
from specdec.lm.loadable import refuse_unsupported
from specdec.lm.mask import MaskKind
from specdec.runtime.agreement import TOLERANCE
from tests.support.families import (
    FAMILIES,
    VOCAB_SIZE,
    WINDOW,
    plain_logits,
    random_ids,
    tiny_model,
)
from tests.support.ragged import EXACT, Conversation, difference

# Small settings of models that are not in FAMILIES.
LOCAL = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
HYBRID = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
BERT = {"hidden_size": 32}


def refusal(model: PreTrainedModel) -> str:
    """Return the one line with which a model is refused."""
    with pytest.raises(UserError) as caught:
        prove(model, "draft.path='x'")
    message = str(caught.value)
    assert message.startswith(f"draft.path='x': {model.config.model_type} "), message
    assert "\n" not in message, f"more than one line:\n{message}"
    return message


# --- right models -------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_accepted(family: str, attention: str | None) -> None:
    error = prove(tiny_model(family, attention=attention), family)
    assert error < EXACT, f"{family}: {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma3_text"])
def test_rounding_of_half_precision_is_no_reason_to_refuse(family: str, dtype: torch.dtype) -> None:
    model: Any = tiny_model(family)
    error = prove(model.to(dtype), family)
    assert error < TOLERANCE[dtype]  # how large it is, and whether at all, is the processor's


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"max_position_embeddings": 16}),
        ("gpt2", {"max_position_embeddings": 16, "n_positions": 16}),
        ("mistral", {"sliding_window": 1}),
        ("mistral", {"sliding_window": 4096}),  # too long to be reached by the proof
        ("mistral", {"sliding_window": None}),
        ("llama", {"vocab_size": 5}),
    ],
    ids=str,
)
def test_extreme_settings_are_accepted(family: str, overrides: dict[str, Any]) -> None:
    assert prove(tiny_model(family, **overrides), family) < EXACT


OTHERS: dict[str, dict[str, Any]] = {
    "cohere2": {"head_dim": 8, **HYBRID},
    "granite": {},
    "olmo2": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": WINDOW},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 4},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    # All layers plain, in families that also have other layers.
    "jamba": {"attn_layer_period": 1, "attn_layer_offset": 0, "num_experts": 2, "mamba_dt_rank": 4},
}


@pytest.mark.parametrize("family", OTHERS)
def test_others_that_are_accepted_are_served_rightly(family: str) -> None:
    """Passing the proof is not enough: longer rows, more of them, more trees."""
    model = tiny_model(family, **OTHERS[family])
    prove(model, family)
    assert ragged_error(model, longest=24) < EXACT


def ragged_error(model: PreTrainedModel, longest: int) -> float:
    """Return the largest error of a conversation in three rows, one of them long."""
    talk = Conversation(model, [longest, 2, 9], capacity=16)
    talk.prefill()
    talk.step([0, 1, 2], [0, 1, 2])
    talk.step([0, 2], [2, 0])
    talk.step([0, 1, 2], [1, 3, 1])
    talk.check_texts()
    return talk.worst


# --- models that would be served wrongly, if they were ------------------------------------------


def ignoring_the_mask(given: dict[str, Any]) -> None:
    given["attention_mask"] = None


def ignoring_positions(given: dict[str, Any]) -> None:
    given["position_ids"] = None


def ignoring_the_cache(given: dict[str, Any]) -> None:
    given[cache_word(LlamaModel.forward)] = None


def masking_with_booleans(given: dict[str, Any]) -> None:
    """Eager attention adds them, as zeros and ones."""
    if given["attention_mask"] is not None:
        given["attention_mask"] = given["attention_mask"] == 0


def shifting_positions(given: dict[str, Any]) -> None:
    """Number the cells from 2 where there is a cache, as some models number after padding."""
    if given["position_ids"] is not None:
        given["position_ids"] = given["position_ids"] + 2


def changed(family: str, change: Callable[[dict[str, Any]], None]) -> PreTrainedModel:
    """Build a model whose decoder gets other arguments than the caller gave."""
    model = tiny_model(family, attention="eager")
    forward = model.base_model.forward

    def wrong(**given: object) -> object:
        change(given)
        return forward(**given)

    model.base_model.forward = wrong
    return model


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", ignoring_the_mask),
        ("gpt2", ignoring_the_mask),
        ("llama", ignoring_positions),
        ("gpt2", ignoring_positions),
        ("llama", ignoring_the_cache),
        ("llama", masking_with_booleans),
        ("gpt2", shifting_positions),
    ],
)
def test_a_model_that_does_not_do_as_it_is_told_is_refused(
    family: str, change: Callable[[dict[str, Any]], None]
) -> None:
    refusal(changed(family, change))


def test_positions_count_relatively_in_rotary_models() -> None:
    """The control of `shifting_positions`: rotary models read differences only, so it is right."""
    assert prove(changed("llama", shifting_positions), "llama") < EXACT


MIXTURES = ["mixtral", "olmoe", "gpt_oss"]
HALVES = [torch.float16, torch.bfloat16]


def near_ties(family: str, dtype: torch.dtype) -> PreTrainedModel:
    """Build a mixture that rounding sends to other experts: pairs of them are chosen nearly alike.

    Half precision rounds anew in every forward here, as kernels do for other shapes.
    """
    model: Any = tiny_model(family, num_experts_per_tok=1)
    routers = [weight for name, weight in model.named_parameters() if name.endswith(ROUTERS)]
    assert routers
    with torch.no_grad():
        for weight in routers:
            weight[1::2] = weight[::2] + 1e-3 * torch.randn_like(weight[::2])
    model.to(dtype)

    def rounded(_: object, given: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *others = given
        if states.dtype is torch.float32:
            return given
        step = 2 * torch.finfo(dtype).eps
        return (states + step * states * torch.randn_like(states), *others)

    model.base_model.layers[0].register_forward_pre_hook(rounded)
    return model


ROUTERS = ("gate.weight", "router.weight")


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", MIXTURES)
def test_an_expert_that_flips_near_a_tie_is_no_reason_to_refuse(
    family: str, dtype: torch.dtype
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = near_ties(family, dtype)
        text = random_ids(60, seed=1)
        first, *others = (plain_logits(model, text) for _ in range(8))
        spread = max(map(difference, torch.cat(others), first.repeat(7, 1)))
        assert spread > TOLERANCE[dtype], "no expert flips, so this shows nothing"
        prove(model, family)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("change", [ignoring_the_mask, ignoring_positions, ignoring_the_cache])
def test_mixtures_that_do_not_do_as_they_are_told_are_refused_in_every_type(
    family: str,
    change: Callable[[dict[str, Any]], None],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = near_ties(family, dtype)
    kind = type(model.base_model)
    forward = kind.forward

    def wrong(self: object, **given: object) -> object:
        change(given)
        return forward(self, **given)

    monkeypatch.setattr(kind, "forward", wrong)
    refusal(model)


@pytest.mark.parametrize("window", [WINDOW, 100])
def test_a_window_that_is_off_by_one_is_noticed(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof's long text must reach beyond the window, also where that is not short."""
    misread = MaskKind(window - 1, hybrid=False)
    monkeypatch.setattr(MaskKind, "of", lambda config: misread)
    refusal(tiny_model("mistral", sliding_window=window))


def test_a_model_that_returns_nothing_finite_is_refused() -> None:
    model: Any = tiny_model("llama")
    with torch.no_grad():
        model.base_model.norm.weight.fill_(float("nan"))
    assert "that are not numbers" in refusal(model)


REFUSED: dict[str, dict[str, Any]] = {
    "falcon": {"alibi": True},  # a bias that follows the 2-D mask of padding
    "bloom": {"n_layer": 2, "n_head": 4, "max_position_embeddings": 256},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_position_embeddings": 256},
    "gpt_neo": {**LOCAL, "window_size": 4},  # a window of its own, counted in cells
    "bert": BERT,  # sees the future
    "rwkv": {"context_length": 256, "attention_hidden_size": 32},  # recurrent, without saying so
}


@pytest.mark.parametrize("family", REFUSED)
def test_models_with_a_bias_a_window_or_a_state_of_their_own_are_refused(family: str) -> None:
    refusal(tiny_model(family, **REFUSED[family]))


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        # A window in cells, not positions, counted from the longest row's end (TinyStories).
        ("gpt_neo", {**LOCAL, "window_size": 32}),
        # Other frequencies for the whole batch once one row is long (Phi-3, Phi-4).
        (
            "phi3",
            {
                "sliding_window": None,
                "original_max_position_embeddings": 32,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "original_max_position_embeddings": 32,
                    "short_factor": [1.0] * 4,
                    "long_factor": [4.0] * 4,
                },
            },
        ),
    ],
    ids=["gpt_neo", "phi3-longrope"],
)
def test_models_that_change_with_the_length_are_refused_or_served_rightly(
    family: str, overrides: dict[str, Any]
) -> None:
    model = tiny_model(family, **overrides)
    try:
        prove(model, family)
    except UserError:
        return
    longest = min(60, HFCausalLM(model).max_length - 12)  # what the context leaves room for
    error = ragged_error(model, longest=longest)
    assert error < EXACT, f"{family} passed the proof, and differs from plain text by {error:.1e}"


# --- refused before any weights are read --------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("whisper", {}, "encoder-decoder model that writes no text, or not from text"),
        ("llama4", {}, "chunked_attention cannot be rewound"),
    ],
)
def test_what_has_no_plain_cache_is_refused_by_its_configuration(
    family: str, settings: dict[str, Any], reason: str
) -> None:
    config = AutoConfig.for_model(family, **settings)
    with pytest.raises(UserError) as caught:
        refuse_unsupported(config, "some/model")
    message = str(caught.value)
    assert reason in message, message
    assert "\n" not in message


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_is_refused_by_its_configuration(family: str) -> None:
    refuse_unsupported(tiny_model(family).config, family)


# --- models that cannot be called ---------------------------------------------------------------


def failing(error: Exception) -> PreTrainedModel:
    model = tiny_model("llama")

    def fail(**given: object) -> None:
        raise error

    model.base_model.forward = fail
    return model


@pytest.mark.parametrize(
    "error",
    [
        TypeError("forward() got an unexpected keyword argument 'position_ids'"),
        RuntimeError("the size of tensor a\nmust match the size of tensor b"),
        ValueError("cache of its own\n"),
        AttributeError("'RowCache' object has no attribute 'conv_states'"),
        IndexError("index out of range in self"),
        NotImplementedError("no cache"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_model_that_cannot_be_called_is_refused_with_its_reason(error: Exception) -> None:
    message = refusal(failing(error))
    assert f"({str(error).strip().splitlines()[0]})" in message


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        AssertionError("x"),  # XLM does
        KeyError("sliding_attention"),  # an unknown kind of mask would
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_model_raises_is_one_line(error: Exception) -> None:
    refusal(failing(error))


def test_the_proof_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    state = torch.get_rng_state()
    logits = plain_logits(model, random_ids(5, seed=1))
    prove(model, "x")
    assert torch.equal(torch.get_rng_state(), state), "the global generator was moved"
    assert all(torch.equal(before[name], weights) for name, weights in model.state_dict().items())
    assert difference(plain_logits(model, random_ids(5, seed=1)), logits) == 0


@pytest.mark.parametrize("dtype", HALVES)
def test_what_goes_wrong_in_half_precision_alone_is_refused(dtype: torch.dtype) -> None:
    """A stock model that hardly differs from itself is not excused by what it does in float32."""
    model: Any = tiny_model("llama")
    model.to(dtype)
    forward = model.base_model.forward

    def wrong(self: Any, **given: Any) -> object:
        if self.dtype is not torch.float32:
            ignoring_the_mask(given)
        return forward.__func__(self, **given)

    model.base_model.forward = MethodType(wrong, model.base_model)
    assert own_spread(model) < TOLERANCE[dtype]
    refusal(model)


def test_without_room_for_float32_the_models_own_spread_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    wrong: Any = changed("llama", ignoring_the_mask)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        right = near_ties("mixtral", torch.bfloat16)
        monkeypatch.setattr("specdec.lm.check.copy", SimpleNamespace(deepcopy=full))
        assert prove(right, "mixtral") > TOLERANCE[torch.bfloat16]
    refusal(wrong.to(torch.bfloat16))


def test_logits_that_are_not_the_heads_or_cannot_be_read_are_refused() -> None:
    """Tokens beyond the embedding would end a process on a GPU, not raise."""
    narrow = tiny_model("llama")
    forward = narrow.forward

    def cut(**given: Any) -> Any:
        found: Any = forward(**given)
        found.logits = found.logits[..., :-1]
        return found

    narrow.forward = cut
    assert f"{VOCAB_SIZE - 1} logits, its vocabulary head has {VOCAB_SIZE} rows" in refusal(narrow)
    wide: Any = tiny_model("llama", tie_word_embeddings=False)
    wide.model.embed_tokens = torch.nn.Embedding(VOCAB_SIZE - 3, 32)
    assert f"{VOCAB_SIZE} logits, it embeds {VOCAB_SIZE - 3} tokens" in refusal(wide)

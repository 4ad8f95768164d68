"""Operations of a forward, against torch's own count of those that a real one does."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from specdec.lm.hf import HFCausalLM
from specdec.lm.operations import forward_operations, multiplied_weights
from tests.support.families import random_ids, tiny_model

# A layer of the tiny Llama: H = 32, 4 query heads and 2 key heads of 8, 48 inside.
LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
HEAD = 61 * 32


def counted(lm: HFCausalLM, num_new: int, context: int) -> int:
    """Let torch count the products of a forward."""
    lm.open(1, context + num_new)
    text = random_ids(context + num_new, seed=2)
    lm.prefill([0], [text[:context]])
    with FlopCounterMode(display=False) as counter:
        lm.forward([0], torch.tensor([text[context:]]))
    return counter.get_total_flops()


def test_weights_that_are_looked_up_do_not_count() -> None:
    assert multiplied_weights(tiny_model("llama")) == (2 * LAYER, HEAD)


@pytest.mark.parametrize("context", [1, 20])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "falcon", "gpt_neox"])
def test_one_token_takes_what_torch_counts(family: str, context: int) -> None:
    """Behind a context of any length: weights, and all pairs with what it sees."""
    lm = HFCausalLM(tiny_model(family, attention="eager"))
    found = counted(lm, 1, context)
    said = forward_operations(lm, 1, context, 1)
    # Rotations are made by small products, which do not count.
    assert said <= found <= said + 2 * 64, f"{family}: {said} said, {found} counted"


def test_a_prompt_takes_the_pairs_that_see_each_other() -> None:
    """Torch counts the whole square of pairs, of which a mask hides a half."""
    lm = HFCausalLM(tiny_model("llama", attention="eager"))
    hidden = 5 * 4 // 2
    width = 2 * 2 * 4 * 2 * 8  # two layers, keys and values, four heads of eight
    assert forward_operations(lm_read(lm), 5, 7, 5) == pytest.approx(
        counted(lm, 5, 7) - width * hidden, abs=2 * 64 * 5
    )


def lm_read(lm: HFCausalLM) -> HFCausalLM:
    """Let a model read a token, so that its cells have a size."""
    lm.prefill([0], [[0]])
    return lm


def test_logits_that_nobody_asks_for_are_saved() -> None:
    lm = lm_read(HFCausalLM(tiny_model("llama")))
    difference = forward_operations(lm, 6, 0, 6) - forward_operations(lm, 6, 0, 1)
    assert difference == 2 * 5 * HEAD


def test_of_experts_those_count_that_a_token_takes() -> None:
    model = tiny_model("mixtral")
    expert = 3 * 32 * 48
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32
    router = 4 * 32
    assert multiplied_weights(model)[0] == 2 * (attention + router + 2 * expert)


def test_experts_that_all_tokens_take_count_whole() -> None:
    """DeepSeek's shared experts stand beside those that are chosen."""
    one, two = (
        multiplied_weights(tiny_model("deepseek_v3", n_shared_experts=number))[0]
        for number in (1, 2)
    )
    assert two - one == 3 * 32 * 24, "one network more, in the one sparse layer"

"""Folded attention is the attention of transformers."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from specdec.runtime.attention import FOLDED, folded, folding
from tests.support.families import tiny_model


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("mask_heads", [1, 4])
@pytest.mark.parametrize("num_new", [1, 3])
def test_it_is_sdpa_with_copied_keys(key_heads: int, mask_heads: int, num_new: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    query, key = drawn(2, 4, num_new, 8), drawn(2, key_heads, 7, 8)
    value = drawn(2, key_heads, 7, 6)  # of another size, as latent attention has it
    hidden = torch.rand(2, mask_heads, num_new, 7, generator=generator) < 0.3
    mask = torch.zeros(hidden.shape, dtype=torch.float64).masked_fill(hidden, -1e9)
    found, _ = folded(torch.nn.Identity(), query, key, value, mask, scaling=0.5)
    copies = 4 // key_heads
    expected = scaled_dot_product_attention(
        query,
        key.repeat_interleave(copies, dim=1),
        value.repeat_interleave(copies, dim=1),
        attn_mask=mask,
        scale=0.5,
    )
    assert found.shape == (2, num_new, 4, 6)
    assert torch.allclose(found, expected.transpose(1, 2), atol=1e-6)  # its softmax is in float32


def test_models_attend_by_it_only_meanwhile() -> None:
    model = tiny_model("llama")
    token_ids = torch.arange(5)[None]
    with torch.inference_mode():
        before = model(input_ids=token_ids, use_cache=False).logits
        with folding(model):
            assert model.config._attn_implementation == FOLDED
            meanwhile = model(input_ids=token_ids, use_cache=False).logits
    assert model.config._attn_implementation == "sdpa"
    assert torch.allclose(before, meanwhile, atol=1e-5)


def test_models_that_run_something_else_keep_it() -> None:
    """Which is how families whose attention does more than sdpa (soft caps, sinks) come."""
    model = tiny_model("llama", attention="eager")
    with folding(model):
        assert model.config._attn_implementation == "eager"

"""Medusa heads as modules: a fresh one is the verifier's head, and a saved one comes back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from specdec.core.errors import UserError
from specdec.heads.base import Heads
from specdec.proposer.chained import ChainedHeads
from specdec.proposer.medusa import MedusaHeads

H, V, K = 8, 11, 3


NO_TOKENS = torch.zeros(2, 5, K, 0)
BEFORE = torch.arange(10).view(2, 5)  # the token before, at each place
MARKOV: dict[str, Any] = {"correction": "markov", "rank": 2}


def all_logits(heads: Heads, hidden: torch.Tensor, unembed: nn.Module) -> torch.Tensor:
    """What all heads say: [..., H] -> [..., K, V]."""
    states = heads.states(hidden, NO_TOKENS)
    return torch.stack([heads.logits(i, x, BEFORE, unembed) for i, x in enumerate(states)], dim=-2)


def hidden(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 5, H, generator=torch.Generator().manual_seed(seed))


def disturbed(heads: MedusaHeads) -> MedusaHeads:
    generator = torch.Generator().manual_seed(1)
    for weight in heads.parameters():
        weight.data.add_(torch.randn(weight.shape, generator=generator))
    return heads


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("options", [{}, MARKOV], ids=["none", "markov"])
def test_a_fresh_head_is_the_verifier_s(own: bool, options: dict[str, Any]) -> None:
    unembed = nn.Linear(H, V, bias=False)
    heads = MedusaHeads(H, V, K, num_layers=2, own_vocabulary_head=own, **options)
    heads.start_from(unembed.weight)
    x = hidden()
    for logits in all_logits(heads, x, unembed).unbind(-2):
        assert torch.equal(logits, unembed(x))


def test_every_block_is_a_block_of_its_own() -> None:
    heads = MedusaHeads(H, V, K, num_layers=2)
    storages = {weight.data_ptr() for weight in heads.parameters()}
    assert len(storages) == len(list(heads.parameters())) == K * (2 * 2 + 1)
    disturbed(heads)
    one, two, three = all_logits(heads, hidden(), nn.Identity()).unbind(-2)
    assert not torch.allclose(one, two)
    assert not torch.allclose(two, three)


def test_blocks_compute_what_the_paper_says() -> None:
    heads = disturbed(MedusaHeads(H, V, 1, own_vocabulary_head=False))
    first: Any = heads.blocks[0]
    x, linear = hidden(), first[0].linear
    expected = x + nn.functional.silu(x @ linear.weight.T + linear.bias)
    torch.testing.assert_close(all_logits(heads, x, nn.Identity())[..., 0, :], expected)


@pytest.mark.parametrize("own", [True, False])
def test_a_correction_adds_what_follows_the_token_before(own: bool) -> None:
    """W2 W1[x]: x's row of W1 times W2, the same for all heads."""
    unembed = nn.Linear(H, V, bias=False)
    heads = disturbed(MedusaHeads(H, V, K, own_vocabulary_head=own, **MARKOV))
    weights = heads.correction
    assert weights is not None
    expected = weights.before.weight[BEFORE] @ weights.after.weight.T  # [2, 5, V]
    found = all_logits(heads, hidden(), unembed)
    heads.correction = None
    torch.testing.assert_close(
        found - all_logits(heads, hidden(), unembed), expected[..., None, :].expand_as(found)
    )


def test_all_else_of_corrected_heads_is_as_without(tmp_path: Path) -> None:
    """The same random numbers make the same heads; and folders from before it say nothing of it."""
    torch.manual_seed(0)
    plain = MedusaHeads(H, V, K, 2).state_dict()
    torch.manual_seed(0)
    corrected = MedusaHeads(H, V, K, 2, **MARKOV).state_dict()
    mine = {name for name in corrected if name.startswith("correction.")}
    assert mine == {"correction.before.weight", "correction.after.weight"}
    for name in corrected.keys() - mine:
        assert torch.equal(corrected[name], plain[name])
    MedusaHeads(H, V, K).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in MARKOV}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert MedusaHeads.from_pretrained(tmp_path, strict=True).correction is None


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("options", [{}, MARKOV], ids=["none", "markov"])
def test_a_saved_head_comes_back(tmp_path: Path, own: bool, options: dict[str, Any]) -> None:
    heads = disturbed(MedusaHeads(H, V, K, 2, own, **options, verifier={"path": "somewhere"}))
    heads.save_pretrained(tmp_path)
    again = MedusaHeads.from_pretrained(tmp_path, strict=True)
    assert again.verifier == {"path": "somewhere"}
    unembed = nn.Linear(H, V, bias=False)
    assert torch.equal(all_logits(again, hidden(), unembed), all_logits(heads, hidden(), unembed))


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": 0},
        {"num_heads": 0},
        {"num_heads": 2.0},
        {"num_layers": -1},
        {"own_vocabulary_head": 1},
        {"correction": "gru"},
        {"rank": 0},
    ],
)
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UserError, match=f"^{name}="):
        MedusaHeads(**{"hidden_size": H, "vocab_size": V, **options})


def test_the_card_says_whose_heads_they_are_and_how_to_use_them(tmp_path: Path) -> None:
    known = {"path": "some/model", "dtype": "float32", "config": "c0ffee"}
    heads = MedusaHeads(H, V, K, **MARKOV, verifier=known)
    heads.save_pretrained(tmp_path, model_card_kwargs={"training": {"eval_head0_top1": "0.5"}})
    card = (tmp_path / "README.md").read_text()
    assert "# MedusaHeads for `some/model`" in card
    assert "specdec-decode verifier.path=some/model proposer=medusa" in card
    for line in (
        "| num_heads | 3 |",
        "| correction | markov |",
        "| rank | 2 |",
        "| eval_head0_top1 | 0.5 |",
        "c0ffee",
        "library_name: specdec",
    ):
        assert line in card
    assert "unknown" in card, "digests that nobody knows must not be made up"


def test_prefix_attention_keeps_its_rotations_exact_in_half_precision() -> None:
    """A rotation by 500 radians rounded to bf16 is off by up to a radian."""
    heads = ChainedHeads(H, V, K, prefix_attention=True)
    assert heads.prefix is not None
    exact = heads.prefix.rotary.inv_freq.clone()
    heads.to(torch.bfloat16)
    assert heads.prefix.layer.mlp.down_proj.weight.dtype == torch.bfloat16
    assert heads.prefix.rotary.inv_freq.dtype == torch.float32
    assert torch.equal(heads.prefix.rotary.inv_freq, exact)
    assert "prefix.rotary.inv_freq" not in heads.state_dict()

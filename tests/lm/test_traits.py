"""What a model is made of is read off its modules: attention, positions, windows and experts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from specdec.lm.accounting import LayerCache, cells_of, on_meta, stock_cells_of
from specdec.lm.traits import ExpertTrait, Traits, traits_of
from tests.support.families import FAMILIES, RECURRENT, SMALL, WINDOW

ROTARY = "rotary, not scaled"
BASE = {"rope_theta": 1e4}
ATTENTION = {
    **dict.fromkeys(FAMILIES, ("grouped-query", 4, 2)),
    **dict.fromkeys(("gpt2", "gptj", "opt"), ("multi-head", 4, 4)),
    "gpt_neox": ("multi-head", 4, 4),
    "falcon": ("multi-query", 4, 1),
}
POSITIONS = {
    **dict.fromkeys(FAMILIES, ROTARY),
    "gpt2": "learned, 256",
    "opt": "learned, 258",  # two more than there are positions
    "gpt_oss": "rotary, yarn x 32",
}
SLIDING = {
    **dict.fromkeys(FAMILIES, ()),
    **dict.fromkeys(("mistral", "phi3"), (0, 1)),
    **dict.fromkeys(("gemma2", "gemma3_text", "gpt_oss"), (0,)),
}
EXPERTS = {
    **dict.fromkeys(FAMILIES),
    **dict.fromkeys(("mixtral", "olmoe", "gpt_oss"), ExpertTrait(4, 2, (0, 1))),
    "deepseek_v3": ExpertTrait(4, 2, (1,)),
}


def seen(
    family: str,
    cells: Callable[[PreTrainedModel], list[LayerCache]] = cells_of,
    **more: object,
) -> Traits:
    settings: dict[str, Any] = {**SMALL, **FAMILIES.get(family, {}), **more}
    config = AutoConfig.for_model(family, **settings)
    model = on_meta(AutoModelForCausalLM.from_config, config, torch.float32)
    return traits_of(model, cells(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_what_they_are_known_for(family: str) -> None:
    found = seen(family)
    assert found.family == family
    assert found.num_layers == 2
    if family == "deepseek_v3":  # latents, or what versions before 5.24 make of them
        assert (found.attention, found.num_heads) == ("latent", 4)
        assert found.num_key_heads in (1, 4)
    else:
        assert (found.attention, found.num_heads, found.num_key_heads) == ATTENTION[family]
    assert found.positions == POSITIONS[family]
    assert tuple(found.sliding_layers) == SLIDING[family]
    assert found.window == (WINDOW if SLIDING[family] else None)
    assert found.experts == EXPERTS[family]


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("llama", {**BASE, "rope_type": "linear", "factor": 4.0}, "linear x 4"),
        (
            "llama",
            {**BASE, "rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 128},
            "yarn x 2.5",
        ),
        (
            "gemma3_text",
            {
                "sliding_attention": {**BASE, "rope_type": "default"},
                "full_attention": {**BASE, "rope_type": "linear", "factor": 8.0},
            },
            "not scaled and linear x 8",
        ),
    ],
)
def test_scalings_are_named(family: str, options: dict[str, Any], said: str) -> None:
    assert seen(family, rope_parameters=options).positions == f"rotary, {said}"


def test_alibi_is_seen() -> None:
    assert seen("falcon", stock_cells_of, alibi=True).positions == "ALiBi"


def test_a_recurrent_model_has_no_attention() -> None:
    found = seen("mamba2", stock_cells_of, **RECURRENT["mamba2"])
    assert (found.attention, found.num_heads, found.num_key_heads) == ("none", None, None)

"""What a model is made of: attention, positions, windows and experts, as its modules show."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from specdec.lm.accounting import LayerCache
from specdec.lm.context import rotations
from specdec.lm.expert_counts import ExpertCounts
from specdec.lm.source_room import num_decoder_layers
from specdec.runtime.program import FULL, SLIDING

MULTI_HEAD, GROUPED, MULTI_QUERY = "multi-head", "grouped-query", "multi-query"
LATENT, NO_ATTENTION = "latent", "none"
# Of families whose configuration has no word for it.
ALWAYS_ALIBI = ("bloom",)
LEARNED = re.compile(r"(^|\.)(wpe|\w*position\w*|pos_emb\w*)$")
RELATIVE = re.compile(r"(^|\.)relative_attention_bias$")
EXPERT = re.compile(r"(?:^|\.)(\d+)\.(?:\w+\.)*experts\.(?:(\d+)\.)?")


@dataclass(frozen=True)
class ExpertTrait:
    """A mixture of experts."""

    number: int  # of a layer
    per_token: int | None  # that a token takes; None: the configuration does not say
    layers: tuple[int, ...]  # those that have them


@dataclass(frozen=True)
class Traits:
    """What a model is made of."""

    family: str
    num_layers: int
    layer_kinds: tuple[str, ...]  # of each layer, full_attention or another kind
    attention: str
    num_heads: int | None  # of queries
    num_key_heads: int | None  # at most, where layers differ; None: it keeps no keys
    positions: str
    window: int | None  # tokens that sliding layers see, the token itself included
    experts: ExpertTrait | None

    @property
    def sliding_layers(self) -> list[int]:
        """The layers that see a window only."""
        return [number for number, kind in enumerate(self.layer_kinds) if kind == SLIDING]


def traits_of(model: PreTrainedModel, cells: Sequence[LayerCache] | None) -> Traits:
    """Look at a model on any device; `cells` are what its layers keep, where that is known."""
    config = model.config.get_text_config(decoder=True)
    whole = model.config
    decoders = num_decoder_layers(whole) if whole.is_encoder_decoder else config.num_hidden_layers
    kinds = _layer_kinds(config, int(decoders))
    queries = getattr(config, "num_attention_heads", None)
    queries = queries if isinstance(queries, int) else None
    heads = getattr(config, "num_key_value_heads", None) or queries
    if cells is not None:  # by which a configuration is not to be believed
        heads = max(each.num_heads for each in cells) or None
    queries = None if heads is None else queries
    return Traits(
        family=model.config.model_type,
        num_layers=len(kinds),
        layer_kinds=kinds,
        attention=_attention(config, queries, heads),
        num_heads=queries,
        num_key_heads=heads,
        positions=_positions(config, _decoder_of(model)),
        window=getattr(config, "sliding_window", None) if SLIDING in kinds else None,
        experts=_experts(config, _decoder_of(model)),
    )


def _decoder_of(model: PreTrainedModel) -> nn.Module:
    return model.get_decoder()


def _layer_kinds(config: PreTrainedConfig, num_layers: int) -> tuple[str, ...]:
    named = getattr(config, "layer_types", None)
    if named:
        return tuple(named)
    windowed = getattr(config, "sliding_window", None) is not None
    return (SLIDING if windowed else FULL,) * num_layers


def _attention(config: PreTrainedConfig, queries: int | None, heads: int | None) -> str:
    if heads is None:
        return NO_ATTENTION
    if getattr(config, "kv_lora_rank", None):
        return LATENT
    if queries is None or heads == queries:
        return MULTI_HEAD
    return MULTI_QUERY if heads == 1 else GROUPED


def _positions(config: PreTrainedConfig, decoder: nn.Module) -> str:
    """Say how a token knows where it stands, by what modules there are for it."""
    if _has_alibi(config):
        return "ALiBi"
    tables = [(name, each) for name, each in decoder.named_modules() if name]
    found: Any
    for name, found in tables:
        if isinstance(found, nn.Embedding) and RELATIVE.search(name):
            return f"relative, {found.num_embeddings} buckets"
        if isinstance(found, nn.Embedding) and LEARNED.search(name):
            sinusoidal = "Sinusoid" in type(found).__name__
            return f"{'sinusoidal' if sinusoidal else 'learned'}, {found.num_embeddings}"
    by_module = any("Rotary" in type(each).__name__ for _, each in tables)
    # GPT-J had no module for it before transformers 5.24.
    if by_module or rotations(config) or getattr(config, "rotary_dim", None):
        return f"rotary, {_scaling(config)}"
    return "none that its modules show"


def _has_alibi(config: PreTrainedConfig) -> bool:
    within = getattr(config, "attn_config", config)
    return bool(getattr(within, "alibi", config.model_type in ALWAYS_ALIBI))


def _scaling(config: PreTrainedConfig) -> str:
    """Name the scalings of rotary positions, each with how far it reaches where it says."""
    said: dict[str, None] = {}
    for each in rotations(config):
        kind, factor = str(each.get("rope_type", "default")), each.get("factor")
        times = "" if factor is None else f" x {factor:g}"
        said["not scaled" if kind == "default" else f"{kind}{times}"] = None
    return " and ".join(said) or "not scaled"


def _experts(config: PreTrainedConfig, decoder: nn.Module) -> ExpertTrait | None:
    """Find the experts of each layer: in one tensor of all, or in a module each."""
    numbers: dict[int, int] = {}
    for name, each in decoder.named_parameters():
        found = EXPERT.search(name)
        if found is not None:
            layer, own = int(found[1]), found[2]
            number = len(each) if own is None else int(own) + 1
            numbers[layer] = max(number, numbers.get(layer, 0))
    if not numbers:
        return None
    counts = ExpertCounts.of(config)
    per_token = None if counts is None else counts.per_token
    return ExpertTrait(max(numbers.values()), per_token, tuple(sorted(numbers)))

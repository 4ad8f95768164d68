"""What each layer of a model remembers of a text, by its configuration: cells, states, or both."""

from enum import Enum

from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from specdec.lm.source_room import is_relative


class LayerKind(Enum):
    """What a layer keeps while a text is read."""

    CELLS = "cells"  # attention: the key and value of each token
    STATES = "states"  # recurrent, linear attention, convolution: their size never changes
    BOTH = "both"
    NOTHING = "nothing"

    @property
    def has_states(self) -> bool:
        """Whether it cannot be rewound by forgetting cells."""
        return self in (LayerKind.STATES, LayerKind.BOTH)


def layer_kinds(config: PreTrainedConfig) -> list[LayerKind]:
    """Ask the cache that transformers makes for such a model."""
    layers = DynamicCache(config=config.get_text_config()).layers
    return [
        _kind(isinstance(layer, CacheLayerMixin), isinstance(layer, LinearAttentionCacheLayerMixin))
        for layer in layers
    ]


def _kind(has_cells: bool, has_states: bool) -> LayerKind:
    if has_states:
        return LayerKind.BOTH if has_cells else LayerKind.STATES
    return LayerKind.CELLS if has_cells else LayerKind.NOTHING


def is_recurrent(config: PreTrainedConfig) -> bool:
    """Whether any layer keeps a state."""
    return any(kind.has_states for kind in layer_kinds(config))


def reads_in_pieces(config: PreTrainedConfig) -> bool:
    """Whether a step may read more than its tokens, or one after another: states were rewound.

    Convolutions alone can be rewound: their last inputs are kept.
    """
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or [])
    return is_recurrent(config) and bool(kinds & {"linear_attention", "hybrid", "mamba"})


def why_no_trees(config: PreTrainedConfig) -> str | None:
    """Say why a model cannot read a tree of candidates in one forward; None: it can."""
    if is_recurrent(config):
        return "its recurrent layers read tokens one after another, and siblings are not"
    if config.is_encoder_decoder and is_relative(config):
        return "its decoder knows positions by distances in the cache, and siblings stand at one"
    return None

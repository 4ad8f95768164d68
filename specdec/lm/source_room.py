"""What an encoder-decoder model's configuration says: its layers, its limits, its first token."""

from typing import Any

from transformers import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from specdec.core.errors import UserError, require, require_int
from specdec.core.room import Room

# Of models whose positions end nowhere, as T5's: what a step costs still grows with its text.
ENDLESS = 4096
SEQ_TO_SEQ = "AutoModelForSeq2SeqLM"
LIMITS = ("max_{}_position_embeddings", "max_position_embeddings")


def num_decoder_layers(config: PreTrainedConfig) -> int:
    """Return how many layers of a decoder look at a source; T5 has a name of its own for that."""
    found = getattr(config, "num_decoder_layers", None)
    return found or config.get_text_config(decoder=True).num_hidden_layers


def room_of(config: PreTrainedConfig, limit: int | None = None, field: str = "max_length") -> Room:
    """Return how many tokens the encoder and the decoder can read, each at most `limit`.

    Raises:
        UserError: `limit` is none, or beyond where positions end; `field` is its name.
    """
    ends = {side: _last_position(config, side) for side in ("encoder", "decoder")}
    if limit is not None:
        require_int(field, limit, 2)
        own = max((end for end in ends.values() if end is not None), default=limit)
        require(limit <= own, field, limit, f"at most {own}, where its positions end")
    found = {
        side: min(end or max(limit or 0, ENDLESS), limit or end or ENDLESS)
        for side, end in ends.items()
    }
    return Room(found["decoder"], found["encoder"])


def _last_position(config: PreTrainedConfig, side: str) -> int | None:
    if is_relative(config):  # some have a `max_position_embeddings` that nobody reads
        return None
    names = [name.format(side) for name in LIMITS]
    found = (getattr(config, name, None) for name in names)
    return next((each for each in found if isinstance(each, int)), None)


def is_relative(config: PreTrainedConfig) -> bool:
    """Whether attention is biased by distances, which is how T5 and its kin know positions."""
    return isinstance(getattr(config, "relative_attention_num_buckets", None), int)


def start_id_of(model: PreTrainedModel) -> int:
    """Return the token that `generate()` begins a decoder's text with.

    Raises:
        UserError: none is named, or several.
    """
    config: Any = model.config
    for settings in (model.generation_config, config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            found = getattr(settings, name, None)
            if type(found) is int:
                return found
            if found is not None:
                raise UserError(f"{name}={found!r}: expected the id of one token")
    raise UserError(
        f"{config.model_type}: no decoder_start_token_id, which the decoder's text begins with"
    )


def require_sides(config: PreTrainedConfig, called: str) -> None:
    """Refuse an encoder-decoder model without what decoding needs to know; complaints begin so.

    Raises:
        UserError: it is none that reads and writes text.
    """
    own = getattr(config, "auto_map", None) or {}  # code that comes with a model
    if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING and SEQ_TO_SEQ not in own:
        kind = f"{config.model_type} is an encoder-decoder model"
        raise UserError(f"{called}: {kind} that writes no text, or not from text")
    text_config = config.get_text_config(decoder=True)
    needed = ("num_hidden_layers", "vocab_size", "hidden_size")
    missing = [name for name in needed if not isinstance(getattr(text_config, name, None), int)]
    if missing:
        reason = f"{config.model_type} has no {', '.join(missing)}"
        raise UserError(f"{called}: {reason}; expected a model that reads and writes text")

"""How many tokens a model can read, by its configuration and by what the user says."""

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PreTrainedConfig

from specdec.core.errors import require, require_int

# Of models without positions: as far as anybody decodes.
UNBOUNDED = 1 << 20
# Rotations that change for all rows, cached cells included, as soon as one row is longer than the
# original context: that context is the limit.
CHANGING = ("longrope", "dynamic")


def steady_length(config: PreTrainedConfig) -> int:
    """Return the context within which a position's rotation depends on nothing else in the batch.

    Static scaling reaches `factor` times as far as the original context, whether or not
    `max_position_embeddings` says so: the cards of YaRN models leave that at the original. Linear
    and llama3 scaling reach further only where the configuration does not have both lengths.
    """
    declared: int = getattr(config, "max_position_embeddings", UNBOUNDED)
    reached = declared
    for kind, scaling in _scalings(config):
        original = scaling.get("original_max_position_embeddings")
        if kind in CHANGING:
            # Dynamic scaling without an original length starts where the context ends.
            return min(int(original or declared), declared)
        original = original or declared
        unsaid = declared == original and kind in ("linear", "llama3")
        # Less than the original is what somebody chose.
        if unsaid or (kind == "yarn" and declared >= original):
            reached = max(reached, int(original * float(scaling.get("factor") or 1.0)))
    return reached


def limited_length(config: PreTrainedConfig, limit: int | None, field: str) -> int:
    """Return the context that `limit` allows; None: what the configuration has.

    Raises:
        UserError: `limit` is none, or beyond a context that positions end with; `field` is its
            name.
    """
    own = steady_length(config)
    if limit is None:
        return own
    require_int(field, limit, 2)
    kinds = [kind for kind, _ in _scalings(config)]
    rotates = bool(kinds) and not set(kinds) & set(CHANGING)
    require(rotates or limit <= own, field, limit, f"at most {own}, where its positions end")
    return limit


def rotations(config: PreTrainedConfig) -> list[Mapping[str, Any]]:
    """Return how positions are rotated: one way, one for each kind of layer, or none."""
    found: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    kinds = [each for each in found.values() if isinstance(each, Mapping)]
    return kinds or ([found] if found else [])


def _scalings(config: PreTrainedConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the kind of each rotation, as far as the context follows from it, and the rest."""
    found = rotations(config)
    by_layer = found != [getattr(config, "rope_parameters", None)]
    for each in found:
        # Where layers differ the lengths are those that the whole model was trained for.
        kind = str(each.get("rope_type", "default"))
        yield ("default" if by_layer and kind == "linear" else kind), each

"""A cache that would be full is an error, before anything is decoded."""

from dataclasses import dataclass

from specdec.cache.policy import CachePolicy


@dataclass(frozen=True)
class ErrorWhenFull(CachePolicy):
    """Refuse requests that could need more cells, before anything is decoded.

    Args:
        max_tokens: see `CachePolicy`.
        max_bytes: see `CachePolicy`.

    Raises:
        UserError: they are no such numbers.
    """

"""A cache that would be full is an error, before anything is decoded."""

from dataclasses import dataclass

from specdec.cache.policy import CachePolicy


@dataclass(frozen=True)
class ErrorWhenFull(CachePolicy):
    """Refuse requests that could need more cells, before anything is decoded."""

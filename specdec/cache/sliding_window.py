"""The oldest cells of a full cache go."""

from dataclasses import dataclass

from specdec.cache.policy import CachePolicy
from specdec.core.errors import require, require_int


@dataclass(frozen=True)
class SlidingWindow(CachePolicy):
    """The oldest cells go; the first `keep_first` stay (Xiao et al. 2024, attention sinks).

    Each token sees the first `keep_first` and those before it that make up the limit with itself,
    as if one token had been read after the other. Positions stay those of the whole text.

    Args:
        max_tokens: see `CachePolicy`.
        max_bytes: see `CachePolicy`.
        keep_first: tokens at the beginning of the text that are always seen.

    Raises:
        UserError: they are no such numbers, or leave no room for a token.
    """

    keep_first: int = 0

    def __post_init__(self) -> None:
        require_int("keep_first", self.keep_first, 0)
        super().__post_init__()

    def require_room(self, limit: int, node: str) -> None:
        """Refuse to keep nothing but the beginning."""
        expected = f"less than the {limit} cells of the cache"
        require(self.keep_first < limit, f"{node}keep_first", self.keep_first, expected)

"""All cells of a full cache go."""

from dataclasses import dataclass

from specdec.cache.policy import CachePolicy
from specdec.core.errors import require, require_int


@dataclass(frozen=True)
class Clear(CachePolicy):
    """All cells go, and the last `read_again` tokens are read again as a text of their own.

    Args:
        max_tokens: see `CachePolicy`.
        max_bytes: see `CachePolicy`.
        read_again: tokens, W; their positions start from 0.

    Raises:
        UserError: they are no such numbers, or leave no room for a token.
    """

    read_again: int = 1

    def __post_init__(self) -> None:
        require_int("read_again", self.read_again, 0)
        super().__post_init__()

    def require_room(self, limit: int, node: str) -> None:
        """Refuse to read as many again as there is room for."""
        expected = f"less than the {limit} cells of the cache"
        require(self.read_again < limit, f"{node}read_again", self.read_again, expected)

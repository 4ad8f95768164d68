"""What all policies share: how many cells a request may keep."""

from dataclasses import dataclass

from accelerate.utils.modeling import convert_file_size_to_int

from specdec.core.errors import UserError, require, require_int

NONE = "none"  # no cache at all: every step reads the whole text again


@dataclass(frozen=True)
class CachePolicy:
    """How many cells a request may keep; candidates of the step that runs come on top.

    Args:
        max_tokens: cells of a request; None: as many as `max_bytes` are.
        max_bytes: bytes of a request's cells in all layers, a number or "1MiB"; None: no limit.

    Raises:
        UserError: they are no such numbers.
    """

    max_tokens: int | None = None
    max_bytes: int | str | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            require_int("max_tokens", self.max_tokens, 2)
        if self.max_bytes is not None:
            bytes_of(self.max_bytes, "max_bytes")
        if self.max_tokens is not None:
            self.require_room(self.max_tokens, "")

    def limit(self, cell_bytes: int) -> int | None:
        """Return the cells that a request may keep, at so many bytes each; None: all.

        Raises:
            UserError: not even two fit, or what the policy keeps leaves no room.
        """
        found = self.max_tokens
        if self.max_bytes is not None:
            fit = bytes_of(self.max_bytes, "max_bytes") // cell_bytes
            found = fit if found is None else min(found, fit)
            expected = f"room for 2 cells of {cell_bytes} bytes"
            require(fit > 1, "cache.max_bytes", self.max_bytes, expected)
        if found is not None:
            self.require_room(found, "cache.")
        return found

    def require_room(self, limit: int, node: str) -> None:
        """Refuse a limit that leaves no room for what the policy keeps; options are of `node`."""


def bytes_of(size: int | str, field: str) -> int:
    """Return bytes, of a number or of a text such as 1MiB, 10GB or 4096.

    Raises:
        UserError: it is neither; `field` is its name.
    """
    try:
        found = int(size) if str(size).isdigit() else convert_file_size_to_int(size)
    except ValueError:
        found = 0
    if isinstance(size, bool) or found < 1:
        raise UserError(f"{field}={size!r}: expected bytes, as a number or like 1MiB")
    return found

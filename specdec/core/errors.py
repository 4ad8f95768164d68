"""The exceptions whose message is meant for the person at the keyboard."""

from types import UnionType


class UserError(ValueError):
    """Input that the user can mend: the message names the field, the value and what would be right.

    Entry points print it as one line and exit with status 2; anything else is our own bug and
    keeps its traceback.
    """


class Unwritable(UserError):
    """A disk or a folder refused what was written: it is full, read-only, or somebody else's."""


class Unfit(UserError):
    """Parts that are right in themselves and cannot go together; a sweep leaves them out."""


class RowError(UserError):
    """A row of a file or a dataset that is not what it should be: `where: complaint`.

    `reason` is what such rows are counted by, if it is not `complaint` up to a bracket or `;`.
    """

    def __init__(self, where: str, complaint: str, reason: str = ""):
        super().__init__(where, complaint, reason)  # all of them, so that it can be pickled
        self.where = where
        self.complaint = complaint
        self.reason = reason or complaint.split(" (")[0].split("; ")[0]

    def __str__(self) -> str:
        return f"{self.where}: {self.complaint}"


def first_line(error: BaseException) -> str:
    """Return what an exception says in one line, its type if it says nothing."""
    said = (str(error).strip() or type(error).__name__).splitlines()
    follows = said[0].endswith(":") and len(said) > 1
    return f"{said[0]} {said[1].strip()}" if follows else said[0]


def require(condition: bool, field: str, value: object, expected: str) -> None:
    """Raise a UserError that reads `field=value: expected ...` unless `condition` holds."""
    if not condition:
        raise UserError(f"{field}={value!r}: expected {expected}")


def require_kind(field: str, value: object, kind: type | UnionType, expected: str) -> None:
    """Refuse anything that is not of a kind."""
    require(isinstance(value, kind), field, value, expected)


def require_name(field: str, value: object, expected: str) -> None:
    """Refuse anything but a text that is not empty."""
    require(isinstance(value, str) and bool(value), field, value, expected)


def require_bool(field: str, value: object) -> None:
    """Refuse anything but true and false."""
    require(isinstance(value, bool), field, value, "true or false")


def require_int(field: str, value: object, minimum: int) -> None:
    """Refuse anything that is not an integer of at least `minimum` (booleans are not integers)."""
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
    require(ok, field, value, f"an integer >= {minimum}")


def require_share(field: str, value: object, most: float = 1.0) -> None:
    """Refuse anything that is not a number in (0, most]."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most
    require(ok, field, value, f"a number in (0, {most:g}]")


def require_number(field: str, value: object, low: float, high: float = float("inf")) -> None:
    """Refuse anything that is not a finite number in [low, high]."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    ok = ok and value != float("inf")
    upper = "" if high == float("inf") else f" and <= {high:g}"
    require(ok, field, value, f"a number >= {low:g}{upper}")

"""What a value of JSON or of a configuration is.

After `isinstance(value, list)` a type checker knows nothing of what is in it; these say it once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard


def is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether it is a node: values by name."""
    return isinstance(value, Mapping)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether it is a list."""
    return isinstance(value, list)


def is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether it is a sequence of values; a text is none."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def are_integers(value: object, least: int) -> bool:
    """Whether it is a sequence of integers of at least `least`, and not empty."""
    if not is_sequence(value) or not value:
        return False
    return all(type(each) is int and each >= least for each in value)

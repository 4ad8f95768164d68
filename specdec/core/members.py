"""Whether a plug-in has the members of its protocol: said before anything is decoded with it."""

from collections.abc import Callable, Mapping, Set
from typing import cast

from specdec.core.errors import UserError
from specdec.core.narrowing import is_sequence
from specdec.core.values import Draw, are_draws

Check = tuple[Callable[[object], bool], str]  # of a member, and what is expected of it


def _is_draw(value: object) -> bool:
    return isinstance(value, Draw)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_draws(value: object) -> bool:
    return isinstance(value, Set) and all(map(_is_draw, cast(Set[object], value)))


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_int(value)


METHOD: Check = (callable, "a method")
FLAG: Check = (lambda value: isinstance(value, bool), "True or False")
DRAWS: Check = (_are_draws, "a frozenset of Draw")
NUMBER: Check = (_is_int, "an integer")
PROPOSER: Mapping[str, Check] = {
    "draw": (are_draws, "a Draw, a frozenset of Draw or None"),
    "max_depth": NUMBER,
    "layers": (is_sequence, "a sequence of layers"),
    **dict.fromkeys(("open", "reset", "propose", "update"), METHOD),
}
TREE: Mapping[str, Check] = {
    "draw": (_is_draw, "a Draw"),
    "max_depth": NUMBER,
    "parents": (is_sequence, "a sequence of integers"),
    "min_confidence": (_is_number, "a number"),
    "may_stop": FLAG,
    **dict.fromkeys(("expand", "kept"), METHOD),
}
RULE: Mapping[str, Check] = {
    "lossless_for": DRAWS,
    "defined_for": DRAWS,
    "needs_q": FLAG,
    "verify": METHOD,
}
PACE: Mapping[str, Check] = {
    "min_confidence": (_is_number, "a number"),
    **dict.fromkeys(("open", "depths", "learn"), METHOD),
}
# What a rule has besides if it can be replayed: all of it, or nothing.
REPLAYABLE: Mapping[str, Check] = {"decided_by_text": DRAWS, "closed_form": METHOD}
PROTOCOLS = {"proposer": PROPOSER, "tree": TREE, "verification rule": RULE, "pace": PACE}


def require_members(plug_in: object, role: str) -> None:
    """Refuse an object that cannot be a `proposer`, a `tree`, a `verification rule` or a `pace`.

    Raises:
        UserError: a member of the protocol (`core.protocols`) is missing, or of another type.
    """
    if isinstance(plug_in, type):
        raise UserError(f"{_name(plug_in)}: a class; expected an object, {plug_in.__name__}(...)")
    name = _name(type(plug_in))
    members = dict(PROTOCOLS[role])
    if role == "verification rule" and any(hasattr(plug_in, each) for each in REPLAYABLE):
        members |= REPLAYABLE
    for member, (is_right, expected) in members.items():
        if not hasattr(plug_in, member):
            raise UserError(f"{name}: no {role}, since it has no `{member}`; expected {expected}")
        value = getattr(plug_in, member)
        if not is_right(value):
            raise UserError(f"{name}.{member}={value!r}: expected {expected} of a {role}")


def require_methods(kind: type, role: str) -> None:
    """Refuse a class, of which there is no object yet, without the methods of its protocol.

    Raises:
        UserError: there is no such method.
    """
    for member, check in PROTOCOLS[role].items():
        if check is METHOD and not callable(getattr(kind, member, None)):
            raise UserError(
                f"{_name(kind)}: no {role}, since it has no `{member}`; expected a method"
            )


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"

"""The prompts that a caller gives: texts, or what `load_prompts` returns."""

from collections.abc import Sequence

from specdec.core.errors import UserError
from specdec.decoding.turns import listed
from specdec.prompts import Prompt

Prompts = Prompt | str | Sequence[Prompt | str]


def prompts_of(given: Prompts) -> list[Prompt]:
    """Return prompts; a bare text is continued as it stands, and is named by its number.

    Raises:
        UserError: there are none, or they are something else.
    """
    requests, prompts = listed(given)
    if requests or not prompts:
        found = repr(requests[0]) if requests else "no prompts"
        raise UserError(f"{found}: expected texts, or prompts of sd.load_prompts(...)")
    return prompts

"""Who speaks, in the words of chat templates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specdec.core.errors import RowError, require

# What no template calls anybody, in whatever case.
SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant",
    "chatgpt": "assistant", "assistant": "assistant", "model": "assistant",
}  # fmt: skip
# Roles of ShareGPT, `from`; rows with a `role` keep it, since some templates know it.
SHAREGPT = SPEAKERS | {
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool",
    "tool_response": "tool", "developer": "developer",
}  # fmt: skip
CALLS = ("function_call", "tool_call")  # whose value is the JSON of one call, or of several
ANSWERING = ("assistant", "model")  # who says what a model would be asked for


@dataclass(frozen=True)
class Roles:
    """What roles of a source are called, before what we know ourselves: {"bing": "assistant"}.

    `option` is the one that names them.

    Raises:
        UserError: it is no mapping from names to names.
    """

    more: Mapping[str, Any] | None = None
    option: str = "prompts.roles"

    def __post_init__(self) -> None:
        good = self.more is None or isinstance(self.more, Mapping)
        named = good and all(map(_is_name, [*(self.more or {}), *(self.more or {}).values()]))
        require(named, self.option, self.more, "roles by name, {bing: assistant}")

    def of(self, where: str, role: str, by_sharegpt: bool) -> str:
        """Return a role as templates know it.

        Raises:
            RowError: ShareGPT's `from` names nobody known; `where` is how the message begins.
        """
        own = dict(self.more or {}).get(role)
        if own is not None:
            return str(own)
        if not by_sharegpt:
            return SPEAKERS.get(role.lower(), role)
        if role.lower() not in SHAREGPT:
            known = ", ".join((*SHAREGPT, *CALLS))
            expected = f"expected one of {known}, or {self.option}={{{role}: ...}}"
            raise RowError(where, f"unknown role {role!r}; {expected}")
        return SHAREGPT[role.lower()]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)

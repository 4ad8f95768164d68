"""One message of a conversation: the row that a chat template gets, as it was read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specdec.core.errors import RowError, UserError
from specdec.prompts.roles import ANSWERING, CALLS, Roles

KNOWN = Roles()
UNSAID = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Message:
    """One contribution to a conversation.

    `content` is text, a list of parts, or None, as chat templates know it. `row` is all that they
    get: the two of them, and whatever else the source said (`tool_calls`, `name`, ...).
    """

    role: str
    content: Any = field(default=None, hash=False)
    row: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False, repr=False)

    def __post_init__(self) -> None:
        if not self.row:
            object.__setattr__(self, "row", {"role": self.role, "content": self.content})

    @property
    def answers(self) -> bool:
        """Whether it is an answer, and nothing that would be answered."""
        return self.role in ANSWERING

    @property
    def is_empty(self) -> bool:
        """Whether it asks for something and has no words for it; a tool may well return nothing."""
        return self.role == "user" and not has_content(self.content)

    def text(self, where: str) -> str:
        """Return the message as plain text, for models without a chat template.

        Raises:
            UserError: there is more to it than text: calls of tools, thoughts, images.
        """
        unsaid = next((name for name in UNSAID if self.row.get(name)), None)
        parts = [{"text": self.content}] if isinstance(self.content, str) else self.content or []
        if unsaid is None and isinstance(parts, list):
            texts = [_text_of(part) for part in parts]
            if None not in texts:
                return "".join(text for text in texts if text is not None)
            unsaid = "content"
        raise UserError(
            f"{where}: only a chat template can say the {unsaid or 'content'} of"
            f" {_short(self.row)}; expected a tokenizer that has one, or text"
        )

    def as_text(self, where: str) -> "Message":
        """Return the message with its parts joined.

        Raises:
            RowError: some are no text.
        """
        texts = [_text_of(part) for part in self.content]
        if None in texts:
            reason = "parts that are no text, and a chat template that does not know parts"
            raise RowError(where, reason)
        content = "".join(text for text in texts if text is not None)
        return Message(self.role, content, {**self.row, "content": content})


def has_content(content: object) -> bool:
    if isinstance(content, str):
        return bool(content.strip())
    if isinstance(content, list):
        return any((text := _text_of(part)) is None or text.strip() for part in content)
    return content is not None


def _text_of(part: object) -> str | None:
    """Return the text of a part; None of an image, or of anything else."""
    if isinstance(part, Mapping):
        part = part.get("text") if part.get("type", "text") == "text" else None
    return part if isinstance(part, str) else None


def read_message(where: str, item: Any, roles: Roles = KNOWN) -> Message:
    """Read one message; ShareGPT says `from` and `value`, human and gpt.

    Which roles and which content there may be is the chat template's to say: a message goes there
    as it is, but for the names of those who speak.

    Raises:
        RowError: it is no message; `where` is how complaints name the place.
    """
    if not isinstance(item, dict):
        raise RowError(where, f"a message must be an object, got {type(item).__name__}")
    item = {**item}
    by_sharegpt = item.get("role") is None
    role: Any = item.pop("from", None) if by_sharegpt else item["role"]
    if item.get("content") is None and "value" in item:
        item["content"] = item.pop("value")
    said = [name for name, value in item.items() if name != "role" and value is not None]
    if not isinstance(role, str) or not role or not (said or "content" in item):
        raise RowError(where, "a message needs `role` and `content` (or `from`, `value`)")
    _require_content(where, item.get("content"))
    rest = {name: value for name, value in item.items() if name != "role"}
    if role in CALLS and role not in (roles.more or {}) and (by_sharegpt or _is_json(rest)):
        return _calling(where, rest)
    called = roles.of(where, role, by_sharegpt)
    row = {"role": called, **rest} if by_sharegpt else {**item, "role": called}
    return Message(called, rest.get("content"), row)


def _require_content(where: str, content: object) -> None:
    """Refuse what no template would take for words: numbers are written as they come, or fail."""
    if isinstance(content, bool | int | float):
        kind = type(content).__name__
        raise RowError(where, f"`content` must be text, parts or null, got {kind}")


def _is_json(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("content"), str) and row["content"].lstrip().startswith(("{", "["))


def _calling(where: str, rest: Mapping[str, Any]) -> Message:
    calls = [{"type": "function", "function": call} for call in _calls(where, rest.get("content"))]
    row = {**rest, "role": "assistant", "content": "", "tool_calls": calls}
    return Message("assistant", "", row)


def _calls(where: str, value: object) -> Sequence[Mapping[str, Any]]:
    """Read what ShareGPT files hold of calls: JSON with `name` and `arguments`, or a list of it."""
    try:
        found: Any = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        found = None
    calls: list[Any] = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        reason = f"function_call={value!r}: expected JSON with name and arguments"
        raise RowError(where, reason, "a function_call that is no JSON")
    return calls


def _short(row: Mapping[str, Any]) -> str:
    text = repr(dict(row))
    return text if len(text) <= 60 else f"{text[:57]}..."

"""One message of a conversation: the row that a chat template gets, as it was read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specdec.core.errors import UserError

# Roles of ShareGPT, `from`, in the words of chat templates; rows with a `role` keep their own.
SHAREGPT = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant",
    "chatgpt": "assistant", "assistant": "assistant", "model": "assistant", "tool": "tool",
    "observation": "tool", "function": "tool", "function_response": "tool",
}  # fmt: skip
CALLS = ("function_call", "tool_call")  # whose value is the JSON of one call, or of several
ANSWERING = ("assistant", "model")  # who says what a model would be asked for
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
        return self.role == "user" and not _has_content(self.content)

    def text(self, where: str) -> str:
        """Return what is said as plain text, for models without a chat template.

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


def _has_content(content: object) -> bool:
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


def read_message(where: str, item: Any) -> Message:
    """Read one message; ShareGPT says `from` and `value`, human and gpt.

    Which roles and which content there may be is the chat template's to say: a message that names
    its `role` goes there as it is.

    Raises:
        UserError: it is no message; `where` is how complaints name the place.
    """
    if not isinstance(item, dict):
        raise UserError(f"{where}: a message must be an object, got {type(item).__name__}")
    item = {**item}
    by_sharegpt = item.get("role") is None
    role: Any = item.pop("from", None) if by_sharegpt else item["role"]
    if item.get("content") is None and "value" in item:
        item["content"] = item.pop("value")
    said = [name for name, value in item.items() if name != "role" and value is not None]
    if not isinstance(role, str) or not role or not (said or "content" in item):
        raise UserError(f"{where}: a message needs `role` and `content` (or `from`, `value`)")
    if not by_sharegpt:
        return Message(role, item.get("content"), item)
    return _of_sharegpt(where, role, {n: v for n, v in item.items() if n != "role"})


def _of_sharegpt(where: str, role: str, rest: Mapping[str, Any]) -> Message:
    if role in CALLS:
        calls = [{"type": "function", "function": call} for call in _calls(where, rest["content"])]
        row = {**rest, "role": "assistant", "content": "", "tool_calls": calls}
        return Message("assistant", "", row)
    if role not in SHAREGPT:
        known = ", ".join((*SHAREGPT, *CALLS))
        raise UserError(f"{where}: unknown role {role!r}; expected one of {known}")
    row = {"role": SHAREGPT[role], **rest}
    return Message(SHAREGPT[role], rest.get("content"), row)


def _calls(where: str, value: object) -> Sequence[Mapping[str, Any]]:
    """Read what ShareGPT files hold of calls: JSON with `name` and `arguments`, or a list of it."""
    try:
        found: Any = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        found = None
    calls: list[Any] = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise UserError(f"{where}: function_call={value!r}: expected JSON with name and arguments")
    return calls


def _short(row: Mapping[str, Any]) -> str:
    text = repr(dict(row))
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Prompts from a file or a dataset: raw text, chat messages, or several turns (Spec-Bench)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from specdec.core.errors import RowError, UserError, require, require_int
from specdec.core.jsonl import UNREADABLE
from specdec.core.trace import PromptKey
from specdec.prompts.message import KNOWN, Message, read_message
from specdec.prompts.roles import Roles
from specdec.prompts.rows import PLACES, DatasetPart, SourceRow, read_rows

# The first that a row has is taken: chat datasets repeat the first message as a bare `prompt`.
FORMS = ("turns", "messages", "conversations", "prompt")
IDS = ("question_id", "id", "prompt_id")
OWN_OPTIONS = "chat_template_kwargs"  # of one row, as in TRL
GIVEN = ("tools", "documents")  # lists of objects, which chat templates know by these names


@dataclass(frozen=True)
class Prompt:
    """A prompt: one turn, or several, each asked after the answer to the one before.

    A turn holds the messages that are new in it and ends with one to be answered: a user's, or what
    a tool said. `raw` says that the source gave bare text (one turn), which no chat template
    touches unless asked to. `given` is what the template gets beside the messages: `tools`,
    `documents`, and options of the row's own; `where`, how complaints name the place that the
    prompt came from.
    """

    prompt_id: str
    category: str
    turns: tuple[tuple[Message, ...], ...]
    raw: bool = False
    given: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    where: str = field(default="", compare=False)
    sample: int = 0  # which of the prompt's samples; only their noise differs

    @property
    def key(self) -> PromptKey:
        """What tells it from all other prompts and samples that are decoded."""
        return self.prompt_id, self.sample

    def samples(self, number: int) -> list["Prompt"]:
        """Return it so many times, to be decoded independently; the first is the prompt itself.

        This is `num_return_sequences` of `generate()`, and `n` of inference engines.

        Raises:
            UserError: the number is below 1.
        """
        require_int("prompts.num_samples", number, 1)
        return [replace(self, sample=sample) for sample in range(number)]

    @property
    def num_turns(self) -> int:
        """How many answers the prompt asks for."""
        return len(self.turns)

    @property
    def name(self) -> str:
        """How complaints name it: where it came from, and its id."""
        called = f"prompt {self.prompt_id!r}"
        return f"{self.where}: {called}" if self.where else called


@dataclass(frozen=True)
class Conversation:
    """Messages with their answers, and what the chat template gets beside them; see `Prompt`."""

    messages: tuple[Message, ...]
    given: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)


def read_conversation(
    row: SourceRow, messages: Sequence[Any], roles: Roles = KNOWN
) -> Conversation:
    """Read all messages of a row, with its `system` first.

    Raises:
        RowError: one of them is no message, or what stands beside them is not what it should be.
    """
    found = tuple(read_message(row.where, item, roles) for item in messages)
    return Conversation(_with_system(row, found) if found else found, _all_given(row))


def load_prompts(
    path: str | Path,
    limit: int | None = None,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    field: str | None = None,
    roles: Mapping[str, str] | None = None,
    option: str = "prompts.path",
) -> list[Prompt]:
    """Read prompts in the order of the file.

    A JSONL or JSON row holds `turns` (a list of texts, asked one after the other), `messages` or
    `conversations` (up to the last message that is no answer: what stands behind it is dropped,
    earlier answers are history), or `prompt` (raw text, or a list of messages). Messages go to the
    chat template as they are, with `tools` and `documents` of the row; a `system` text comes before
    them, and its `chat_template_kwargs` are options of the template. The id is `question_id`, `id`,
    `prompt_id` or the line number. A `.txt` file is one raw prompt, without its final newline.

    Args:
        path: a `.jsonl`, `.json`, `.parquet` or `.txt` file, packed (`.gz`) or not, `zoo:prompts`
            for the embedded prompts, a folder in dataset form or the name of a Hub's dataset.
        limit: read no further than this many prompts.
        split: which split of a dataset; files have none.
        config: which configuration of a dataset, if it has several.
        revision: which branch, tag or commit of a dataset of the Hub.
        field: the one that holds the prompt, in place of those above: text, a list of texts (one a
            turn), or of messages.
        roles: who speaks under names that we do not know, {"bing": "assistant"}.
        option: what names `path` in complaints.

    Returns:
        Prompts of one turn or several, not rendered yet.

    Raises:
        UserError: there is nothing at `path`, or a row is not a prompt.
    """
    require(isinstance(path, str | Path) and bool(str(path)), option, path, PLACES)
    if limit is not None:
        require_int("prompts.limit", limit, 1)
    named = field is None or (isinstance(field, str) and bool(field))
    require(named, "prompts.field", field, "the name of the field that holds the prompt")
    prompts: dict[str, Prompt] = {}
    known = Roles(roles)
    for row in read_rows(str(path), DatasetPart(split, config, revision, option), limit):
        prompt = _prompt(row, field, known)
        if prompt.prompt_id in prompts:
            reason = f"the id {prompt.prompt_id!r} is taken by an earlier prompt"
            raise RowError(row.where, f"{reason}; ids must be unique")
        prompts[prompt.prompt_id] = prompt
    if not prompts:
        raise UserError(f"{option}={str(path)!r}: holds no prompts; expected at least one")
    return list(prompts.values())


def _prompt(row: SourceRow, field: str | None, roles: Roles) -> Prompt:
    # Fields may be null: datasets fill up the columns that a row of the file does not have.
    form = next((n for n in ([field] if field else FORMS) if row.fields.get(n) is not None), None)
    if form is None:
        known = "`turns`, `messages`, `conversations` or `prompt`"
        expected = f"the field {field!r}, prompts.field" if field else f"one of the fields {known}"
        raise RowError(row.where, f"expected {expected}")
    value = row.fields[form]
    raw = isinstance(value, str) and form not in FORMS[:-1]
    if raw:
        turns = (_user(value),)
    elif form == "turns" or (form == field and _is_texts(value)):
        turns = _turns(row.where, value)
    else:
        turns = (_conversation(row.where, form, value, roles),)
    if any(turn[-1].is_empty for turn in turns):
        raise RowError(row.where, "the prompt is empty; expected text to continue or answer")
    turns = (_with_system(row, turns[0]), *turns[1:])
    given = _all_given(row)
    prompt_id = next(filter(None, (_label(row, name) for name in IDS)), str(row.number))
    return Prompt(prompt_id, _label(row, "category"), turns, raw, given, row.where)


def _label(row: SourceRow, field: str) -> str:
    """Return the field as text, "" if it is missing."""
    value = row.fields.get(field)
    if value is not None and not isinstance(value, str | int):
        raise RowError(row.where, f"{field}={value!r}: expected text or an integer")
    return "" if value is None else str(value)


def _user(content: str) -> tuple[Message, ...]:
    return (Message("user", content),)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _turns(where: str, value: Any) -> tuple[tuple[Message, ...], ...]:
    if not _is_texts(value):
        raise RowError(where, "`turns` must be a list of texts, one a turn, and not be empty")
    return tuple(_user(text) for text in value)


def _conversation(where: str, form: str, value: object, roles: Roles) -> tuple[Message, ...]:
    """Return the messages up to the last one that is no answer: what is left to answer."""
    if not isinstance(value, list):
        kind = "a list of messages" if form in FORMS[:-1] else "text or a list of messages"
        raise RowError(where, f"`{form}` must be {kind}, got {type(value).__name__}")
    messages = [read_message(where, item, roles) for item in value]
    while messages and messages[-1].answers:
        messages.pop()
    if not messages:
        raise RowError(where, f"`{form}` must hold a message of the user, to be answered")
    return tuple(messages)


def _with_system(row: SourceRow, turn: tuple[Message, ...]) -> tuple[Message, ...]:
    """Put what the row itself says as its system first; ShareGPT says it beside the messages."""
    system = row.fields.get("system")
    if system is None or system == "":
        return turn
    if not isinstance(system, str):
        raise RowError(row.where, f"system={system!r}: expected text", "a `system` that is no text")
    if turn[0].role != "system":
        return (Message("system", system), *turn)
    if turn[0].content != system:
        raise RowError(row.where, "says two things as its system; expected one of them")
    return turn


def _all_given(row: SourceRow) -> dict[str, Any]:
    """Collect what the template gets beside the messages; options of a row's own go before ours."""
    given = {name: _given(row, name) for name in GIVEN if row.fields.get(name) is not None}
    return given | _own_options(row)


def _given(row: SourceRow, name: str) -> list[Any]:
    """Read a list of objects."""
    found = _parsed(row.fields[name])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        reason = f"{name}={_short(row.fields[name])}: expected a list of objects"
        raise RowError(row.where, reason, f"`{name}` that are no list of objects")
    return found


def _own_options(row: SourceRow) -> dict[str, Any]:
    value = row.fields.get(OWN_OPTIONS)
    found = {} if value is None else _parsed(value)
    if not isinstance(found, dict):
        reason = f"{OWN_OPTIONS}={_short(value)}: expected options by name"
        raise RowError(row.where, reason, f"`{OWN_OPTIONS}` that are no options")
    return {str(name): each for name, each in found.items()}


def _parsed(value: Any) -> Any:
    """Read JSON: columns of tables cannot hold objects of unlike shapes."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except UNREADABLE:
        return None


def _short(value: object) -> str:
    return repr(value) if len(repr(value)) < 60 else f"{repr(value)[:57]}..."

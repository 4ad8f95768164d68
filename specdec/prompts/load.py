"""Prompts from a file or a dataset: raw text, chat messages, or several turns (Spec-Bench)."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from specdec.core.errors import UserError, require, require_int
from specdec.core.jsonl import read_jsonl

ZOO = Path(__file__).parent.parent / "zoo"
SUFFIXES = (".jsonl", ".json", ".txt")
FILES = "a .jsonl, .json or .txt file"
PLACES = f"{FILES}, zoo:prompts, a dataset folder or a Hugging Face dataset"
# The first that a row has is taken: chat datasets repeat the first message as a bare `prompt`.
FORMS = ("turns", "messages", "conversations", "prompt")
IDS = ("question_id", "id", "prompt_id")
ROLES = {
    "system": "system", "developer": "developer", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "tool": "tool",
}  # fmt: skip


@dataclass(frozen=True)
class Message:
    """One contribution to a conversation; `role` is in the words of chat templates."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: one turn, or several, each asked after the answer to the one before.

    A turn holds the messages that are new in it and ends with a user message. `raw` says that the
    source gave bare text (one turn, one message), which no chat template touches unless asked to.
    """

    prompt_id: str
    category: str
    turns: tuple[tuple[Message, ...], ...]
    raw: bool = False

    @property
    def num_turns(self) -> int:
        """How many answers the prompt asks for."""
        return len(self.turns)


@dataclass(frozen=True)
class _Row:
    """A row of any source; `where` is how complaints name it."""

    where: str
    number: int  # 1-based
    fields: dict[str, Any]


def load_prompts(path: str | Path, limit: int | None = None, split: str = "train") -> list[Prompt]:
    """Read prompts in the order of the file.

    A JSONL or JSON row holds `turns` (a list of texts, asked one after the other), `messages` or
    `conversations` (up to the last user message: an answer behind it is dropped, earlier ones are
    history), or `prompt` (raw text, or a list of messages). Its id is `question_id`, `id`,
    `prompt_id` or the line number. A `.txt` file is one raw prompt, without its final newline.

    Args:
        path: a `.jsonl`, `.json` or `.txt` file, `zoo:prompts` for the embedded prompts, a folder
            in dataset form or the name of a Hugging Face dataset.
        limit: read no further than this many prompts.
        split: which split of a dataset; files have none.

    Raises:
        UserError: there is nothing at `path`, or a row is not a prompt.
    """
    require(isinstance(path, str | Path) and bool(str(path)), "prompts.path", path, PLACES)
    if limit is not None:
        require_int("prompts.limit", limit, 1)
    prompts: dict[str, Prompt] = {}
    for row in islice(_rows(str(path), split), limit):
        prompt = _prompt(row)
        if prompt.prompt_id in prompts:
            reason = f"the id {prompt.prompt_id!r} is taken by an earlier prompt"
            raise UserError(f"{row.where}: {reason}; ids must be unique")
        prompts[prompt.prompt_id] = prompt
    if not prompts:
        raise UserError(f"prompts.path={str(path)!r}: holds no prompts; expected at least one")
    return list(prompts.values())


def _rows(path: str, split: str) -> Iterator[_Row]:
    """Find out what `path` is and read it lazily, so that a limit spares the rest."""
    require(not path.startswith("zoo:") or path == "zoo:prompts", "prompts.path", path, PLACES)
    file = ZOO / "prompts.jsonl" if path == "zoo:prompts" else Path(path)
    suffix = file.suffix.lower()
    if not file.is_file():
        if suffix in SUFFIXES:
            raise UserError(f"prompts.path={path!r}: no such file; expected {PLACES}")
        return _dataset_rows(path, split)
    require(suffix in SUFFIXES, "prompts.path", path, PLACES)
    if suffix == ".jsonl":
        return (_Row(f"{file}:{number}", number, row) for number, row in read_jsonl(file))
    if suffix == ".json":
        return _json_rows(file)
    # Editors end a file with a newline that nobody means to ask the model about.
    return iter([_Row(str(file), 1, {"prompt": _read(file).removesuffix("\n")})])


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as UTF-8 text ({error})") from None


def _json_rows(file: Path) -> Iterator[_Row]:
    try:
        rows = json.loads(_read(file))
    except json.JSONDecodeError as error:
        reason = f"not valid JSON ({error})"
        raise UserError(f"{file}: {reason}; one object a line belongs in a .jsonl file") from None
    if not isinstance(rows, list):
        raise UserError(f"{file}: expected a list of rows, got {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        where = f"{file}, row {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected a JSON object, got {type(row).__name__}")
        yield _Row(where, number, row)


def _dataset_rows(path: str, split: str) -> Iterator[_Row]:
    """Read a dataset folder, or a dataset of the Hub (or of its cache)."""
    require(isinstance(split, str) and bool(split), "prompts.split", split, "the name of a split")
    # Names on the Hub have one slash at most; do not look there for a folder that is mistyped.
    if (path.startswith((".", "/", "~")) or path.count("/") > 1) and not Path(path).is_dir():
        raise UserError(f"prompts.path={path!r}: no such file or folder; expected {PLACES}")
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            f"prompts.path={path!r}: not a file, and datasets need one more package: "
            "pip install 'specdec-lab[datasets]'"
        ) from None
    try:
        dataset = load_dataset(path, split=split)
    except Exception as error:  # its own errors and those of every format, file system and network
        reason = f"cannot be loaded as a dataset, split {split!r} ({_first_line(error)})"
        raise UserError(f"prompts.path={path!r}: {reason}; neither is it {FILES}") from None
    for number, row in enumerate(dataset, start=1):
        yield _Row(f"{path} ({split}), row {number}", number, dict(row))


def _first_line(error: BaseException) -> str:
    """Say in one line what went wrong, first of all: datasets wraps errors in vague ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _prompt(row: _Row) -> Prompt:
    # Fields may be null: datasets fill up the columns that a row of the file does not have.
    form = next((name for name in FORMS if row.fields.get(name) is not None), None)
    if form is None:
        known = "`turns`, `messages`, `conversations` or `prompt`"
        raise UserError(f"{row.where}: expected one of the fields {known}")
    value = row.fields[form]
    raw = form == "prompt" and isinstance(value, str)
    if raw:
        turns = (_user(value),)
    elif form == "turns":
        turns = _turns(row.where, value)
    else:
        turns = (_conversation(row.where, form, value),)
    if not all(turn[-1].content.strip() for turn in turns):
        raise UserError(f"{row.where}: the prompt is empty; expected text to continue or answer")
    prompt_id = next(filter(None, (_label(row, name) for name in IDS)), str(row.number))
    return Prompt(prompt_id, _label(row, "category"), turns, raw)


def _label(row: _Row, field: str) -> str:
    """Return the field as text, "" if it is missing."""
    value = row.fields.get(field)
    if value is not None and not isinstance(value, str | int):
        raise UserError(f"{row.where}: {field}={value!r}: expected text or an integer")
    return "" if value is None else str(value)


def _user(content: str) -> tuple[Message, ...]:
    return (Message("user", content),)


def _turns(where: str, value: object) -> tuple[tuple[Message, ...], ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise UserError(f"{where}: `turns` must be a list of texts, one a turn, and not be empty")
    return tuple(_user(text) for text in value)


def _conversation(where: str, form: str, value: object) -> tuple[Message, ...]:
    """Return the messages up to the last one of the user: what is left to answer."""
    if not isinstance(value, list):
        kind = "text or a list of messages" if form == "prompt" else "a list of messages"
        raise UserError(f"{where}: `{form}` must be {kind}, got {type(value).__name__}")
    messages = [read_message(where, item) for item in value]
    while messages and messages[-1].role != "user":
        messages.pop()
    if not messages:
        raise UserError(f"{where}: `{form}` must hold a message of the user, to be answered")
    return tuple(messages)


def read_message(where: str, item: Any) -> Message:
    """Read one message; ShareGPT says `from` and `value`, human and gpt."""
    if not isinstance(item, dict):
        raise UserError(f"{where}: a message must be an object, got {type(item).__name__}")
    role = item.get("from") if item.get("role") is None else item["role"]
    content = item.get("value") if item.get("content") is None else item["content"]
    if not isinstance(role, str) or not isinstance(content, str):
        raise UserError(f"{where}: a message needs `role` and `content` (or `from`, `value`)")
    if role not in ROLES:
        raise UserError(f"{where}: unknown role {role!r}; expected one of {', '.join(ROLES)}")
    return Message(ROLES[role], content)

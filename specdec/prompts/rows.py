"""Rows of a file or a dataset, each with the words by which complaints name it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from specdec.core.errors import UserError, require
from specdec.core.jsonl import UNREADABLE, read_jsonl, read_text, require_characters

ZOO = Path(__file__).parent.parent / "zoo"
SUFFIXES = (".jsonl", ".json", ".txt")
FILES = "a .jsonl, .json or .txt file"
PLACES = f"{FILES}, zoo:prompts, a dataset folder or a Hugging Face dataset"


@dataclass(frozen=True)
class Row:
    """A row of any source; `where` is how complaints name it."""

    where: str
    number: int  # 1-based
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """Which part of a dataset is meant; files have none."""

    split: str = "train"
    config: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        require(_is_name(self.split), "prompts.split", self.split, "the name of a split")
        for name, value, expected in (
            ("config", self.config, "the name of a dataset's configuration"),
            ("revision", self.revision, "a branch, a tag or a commit of a dataset"),
        ):
            require(value is None or _is_name(value), f"prompts.{name}", value, expected)

    def __str__(self) -> str:
        """Name the part in complaints: `main, test`."""
        told = (self.config, self.split, self.revision)
        return ", ".join(name for name in told if name is not None)

    def require_dataset(self, path: str, kind: str, *names: str) -> None:
        """Refuse options that would do nothing.

        Raises:
            UserError: one of `names` is told, and what `path` names is of a kind without it.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None:
                raise UserError(f"prompts.{name}={value!r}: {path!r} is {kind}, which has none")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def read_rows(path: str, part: Part, limit: int | None) -> Iterator[Row]:
    """Find out what `path` is and read it lazily, so that a limit spares the rest.

    Raises:
        UserError: there is nothing there, or it is not what it seems.
    """
    return islice(_rows(path, part), limit)


def _rows(path: str, part: Part) -> Iterator[Row]:
    require(not path.startswith("zoo:") or path == "zoo:prompts", "prompts.path", path, PLACES)
    file = ZOO / "prompts.jsonl" if path == "zoo:prompts" else Path(path)
    suffix = file.suffix.lower()
    if not file.is_file():
        if suffix in SUFFIXES:
            raise UserError(f"prompts.path={path!r}: no such file; expected {PLACES}")
        return _dataset_rows(path, part)
    require(suffix in SUFFIXES, "prompts.path", path, PLACES)
    part.require_dataset(path, "a file", "config", "revision")
    if suffix == ".jsonl":
        return (Row(f"{file}:{number}", number, row) for number, row in read_jsonl(file))
    if suffix == ".json":
        return _json_rows(file)
    # Editors end a file with a newline that nobody means to ask the model about.
    return iter([Row(str(file), 1, {"prompt": read_text(file).removesuffix("\n")})])


def _json_rows(file: Path) -> Iterator[Row]:
    try:
        rows = json.loads(read_text(file))
    except UNREADABLE as error:
        reason = f"not valid JSON ({error})"
        raise UserError(f"{file}: {reason}; one object a line belongs in a .jsonl file") from None
    if not isinstance(rows, list):
        raise UserError(f"{file}: expected a list of rows, got {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        where = f"{file}, row {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected a JSON object, got {type(row).__name__}")
        require_characters(where, row)
        yield Row(where, number, row)


def _dataset_rows(path: str, part: Part) -> Iterator[Row]:
    """Read a dataset folder, or a dataset of the Hub (or of its cache)."""
    # Names on the Hub have one slash at most; do not look there for a folder that is mistyped.
    is_folder = Path(path).is_dir()
    if (path.startswith((".", "/", "~")) or path.count("/") > 1) and not is_folder:
        raise UserError(f"prompts.path={path!r}: no such file or folder; expected {PLACES}")
    if is_folder:
        part.require_dataset(path, "a folder", "revision")
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            f"prompts.path={path!r}: not a file, and datasets need one more package: "
            "pip install 'specdec-lab[datasets]'"
        ) from None
    try:
        dataset = load_dataset(path, name=part.config, split=part.split, revision=part.revision)
    except Exception as error:  # its own errors and those of every format, file system and network
        told = "" if part.config is None else f"configuration {part.config!r}, "
        reason = f"cannot be loaded as a dataset, {told}split {part.split!r} ({_first_line(error)})"
        raise UserError(f"prompts.path={path!r}: {reason}; neither is it {FILES}") from None
    for number, row in enumerate(dataset, start=1):
        fields = {str(name): _without_fillings(value) for name, value in dict(row).items()}
        yield Row(f"{path} ({part}), row {number}", number, fields)


def _without_fillings(value: Any) -> Any:
    """Take out the nulls by which tables fill up what a row does not have; a null content stays.

    Chat templates ask whether a message has `tool_calls`, and not whether they are null.
    """
    if isinstance(value, list):
        return [_without_fillings(each) for each in value]
    if isinstance(value, dict):
        kept = {n: v for n, v in value.items() if v is not None or n in ("content", "value")}
        return {name: _without_fillings(each) for name, each in kept.items()}
    return value


def _first_line(error: BaseException) -> str:
    """Say in one line what went wrong, first of all: datasets wraps errors in vague ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]

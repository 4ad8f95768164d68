"""Rows of a file or a dataset, each with the words by which complaints name it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from specdec.core.digest import digest, digest_of
from specdec.core.errors import RowError, UserError, first_line, require
from specdec.core.jsonl import require_object, scan_jsonl
from specdec.core.text_file import opened, read_text, require_characters
from specdec.prompts.json_list import scan_list
from specdec.zoo import ZOO_FOLDER

SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")
PACKED = ".gz"
FILES = "a .jsonl, .json or .txt file, packed (.gz) or not, a .parquet file"
PLACES = f"{FILES}, zoo:prompts, a dataset folder or a Hugging Face dataset"


@dataclass(frozen=True)
class SourceRow:
    """A row of any source; `where` is how complaints name it."""

    where: str
    number: int  # 1-based
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class DatasetPart:
    """Which part of a dataset is meant; files have none.

    `option` is the one that names the file or the dataset, `prompts.path`: the others stand beside
    it in complaints.
    """

    split: str = "train"
    config: str | None = None
    revision: str | None = None
    option: str = "prompts.path"

    def __post_init__(self) -> None:
        require(_is_name(self.split), self.beside("split"), self.split, "the name of a split")
        for name, value, expected in (
            ("config", self.config, "the name of a dataset's configuration"),
            ("revision", self.revision, "a branch, a tag or a commit of a dataset"),
        ):
            require(value is None or _is_name(value), self.beside(name), value, expected)

    def __str__(self) -> str:
        """Name the part in complaints: `main, test`."""
        named = (self.config, self.split, self.revision)
        return ", ".join(name for name in named if name is not None)

    def beside(self, name: str) -> str:
        """Name an option of the same node."""
        return f"{self.option.rpartition('.')[0]}.{name}"

    def require_dataset(self, path: str, kind: str, *names: str) -> None:
        """Refuse options that would do nothing.

        Raises:
            UserError: one of `names` is given, and what `path` names is of a kind without it.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None:
                option = self.beside(name)
                raise UserError(f"{option}={value!r}: {path!r} is {kind}, which has none")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def read_rows(path: str, part: DatasetPart, limit: int | None) -> Iterator[SourceRow]:
    """Find out what `path` is and read it lazily, so that a limit spares the rest.

    Raises:
        UserError: there is nothing there, or it is not what it seems.
    """
    for row in islice(scan_rows(path, part), limit):
        if isinstance(row, RowError):
            raise row
        yield row


def scan_rows(path: str, part: DatasetPart) -> Iterator[SourceRow | RowError]:
    """Read lazily, with an error in the place of what is no row.

    Raises:
        UserError: there is nothing at `path`, or it is not what it seems.
    """
    option = part.option
    require(not path.startswith("zoo:") or path == "zoo:prompts", option, path, PLACES)
    file = ZOO_FOLDER / "prompts.jsonl" if path == "zoo:prompts" else Path(path)
    kind = kind_of(file)
    if not file.is_file():
        if kind in SUFFIXES:
            raise UserError(f"{option}={path!r}: no such file; expected {PLACES}")
        return _dataset_rows(path, part)
    require(kind in SUFFIXES, option, path, PLACES)
    part.require_dataset(path, "a file", "config", "revision")
    if kind == ".parquet":
        return _parquet_rows(file)
    if kind == ".txt":
        # Editors end a file with a newline that nobody means to ask the model about.
        return iter([SourceRow(str(file), 1, {"prompt": read_text(file).removesuffix("\n")})])
    return _jsonl_rows(file) if kind == ".jsonl" else _json_rows(file)


def kind_of(file: Path) -> str:
    """Return the suffix that says how a file is read, packed or not; "" of what none says."""
    name = file.name.lower().removesuffix(PACKED)
    kind = Path(name).suffix
    return "" if kind == ".parquet" and file.suffix.lower() == PACKED else kind


def _jsonl_rows(file: Path) -> Iterator[SourceRow | RowError]:
    for number, row in scan_jsonl(file):
        yield row if isinstance(row, RowError) else SourceRow(f"{file}:{number}", number, row)


def _json_rows(file: Path) -> Iterator[SourceRow | RowError]:
    with opened(file) as text:
        for number, row in enumerate(scan_list(file, text), start=1):
            where = f"{file}, row {number}"
            try:
                fields = require_object(where, row)
                require_characters(where, row)
                yield SourceRow(where, number, fields)
            except RowError as error:
                yield error


def _parquet_rows(file: Path) -> Iterator[SourceRow | RowError]:
    """Read a table a few rows at a time, however large it is."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    where = f"{file}, row {number}"
                    fields = {name: without_fillings(value) for name, value in row.items()}
                    yield SourceRow(where, number, fields)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file}: cannot be read as a parquet file ({_cause(error)})") from None


def _dataset_rows(path: str, part: DatasetPart) -> Iterator[SourceRow | RowError]:
    for number, row in enumerate(_dataset(path, part), start=1):
        fields = {str(name): without_fillings(value) for name, value in dict(row).items()}
        yield SourceRow(f"{path} ({part}), row {number}", number, fields)


def dataset_digest(path: str, part: DatasetPart) -> str:
    """Return the digest of a part of a dataset, by the content of the tables that it is read from.

    Raises:
        UserError: it cannot be had.
    """
    dataset = _dataset(path, part)
    tables = [Path(table["filename"]) for table in getattr(dataset, "cache_files", ())]
    digests = [digest(table) for table in tables] or [repr(dict(row)) for row in dataset]
    return digest_of("\n".join([str(part), *digests]).encode("utf-8", "surrogateescape"))


def _dataset(path: str, part: DatasetPart) -> Any:
    """Load a dataset folder, or a dataset of the Hub (or of its cache)."""
    # Names on the Hub have one slash at most; do not look there for a folder that is mistyped.
    is_folder = Path(path).is_dir()
    if (path.startswith((".", "/", "~")) or path.count("/") > 1) and not is_folder:
        raise UserError(f"{part.option}={path!r}: no such file or folder; expected {PLACES}")
    if is_folder:
        part.require_dataset(path, "a folder", "revision")
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            f"{part.option}={path!r}: not a file, and datasets need one more package: "
            "pip install 'specdec-lab[datasets]'"
        ) from None
    try:
        return load_dataset(path, name=part.config, split=part.split, revision=part.revision)
    except Exception as error:  # its own errors and those of every format, file system and network
        configuration = "" if part.config is None else f"configuration {part.config!r}, "
        reason = (
            f"cannot be loaded as a dataset, {configuration}split {part.split!r} ({_cause(error)})"
        )
        raise UserError(f"{part.option}={path!r}: {reason}; neither is it {FILES}") from None


def without_fillings(value: object) -> object:
    """Take out the nulls by which tables fill up what a row does not have; a null content stays.

    Chat templates ask whether a message has `tool_calls`, and not whether they are null.
    """
    if isinstance(value, list):
        return [without_fillings(each) for each in value]
    if isinstance(value, dict):
        kept = {n: v for n, v in value.items() if v is not None or n in ("content", "value")}
        return {name: without_fillings(each) for name, each in kept.items()}
    return value


def _cause(error: BaseException) -> str:
    """Say in one line what went wrong, first of all: datasets wraps errors in vague ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)

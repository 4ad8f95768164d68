"""Training text: plain text, or rows with messages, `text` or `token_ids`.

`zoo:train` and `zoo:held_out` are the source files that the embedded models were made with.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from specdec.core.digest import digest_of
from specdec.core.errors import RowError, UserError
from specdec.core.jsonl import unsealed
from specdec.core.text_file import opened, require_text
from specdec.prompts import FILES, Conversation, SourceRow, kind_of, read_conversation, scan_rows
from specdec.prompts.rows import SUFFIXES, dataset_digest
from specdec.training.data.answer_file import require_whole
from specdec.training.data.left_out import ROWS_UNTIL_SURE
from specdec.training.data.manifest import file_digest
from specdec.training.data.reading import Source
from specdec.zoo.stdlib import held_out_files, training_files

ZOO: Mapping[str, Callable[[], list[Path]]] = {
    "zoo:train": training_files,
    "zoo:held_out": held_out_files,
}
PLACES = f"{FILES}, {', '.join(ZOO)}, a dataset folder or a Hugging Face dataset"
TALKS = ("messages", "conversations", "conversation")  # go before a `text` that repeats them
# Longer texts are tokenised in pieces, where words and lines end; tokens do not reach across.
PIECE = 1 << 20  # characters
SHARED_PIECE = 1 << 12  # where some of a text are held out
SEAMS = (re.compile(r"(?<=\S)\n(?=\S)"), re.compile(r"(?<=\S)(?= \S)"))


@dataclass(frozen=True)
class Passage:
    """A text, or a piece of one that is long."""

    text: str
    ends: bool = True  # whether no other piece follows


@dataclass(frozen=True)
class Written:
    """What the verifier wrote after a prompt, token for token."""

    token_ids: tuple[int, ...]  # the prompt's first
    num_prompt_tokens: int


Document = Passage | Conversation | Written


@dataclass(frozen=True)
class Found:
    """What a row holds, or why it holds nothing; `where` is how complaints name it."""

    where: str
    document: Document | RowError


def documents(source: Source) -> Iterator[Found]:
    """Read the rows of a file or a data set, or the share of them that is asked for.

    A `.txt` file is one text; the parts that it is shared in are its pieces.

    Raises:
        UserError: there is nothing at the path, or it is of another kind.
    """
    require_there(source)
    share, number, has_any = source.share, 0, False
    for number, unit in enumerate(_units(source), start=1):
        if share is None or share.has(number - 1):
            has_any = True
            yield from unit
    if share is not None and not has_any and number:
        units = "pieces of text" if kind_of(Path(source.path)) == ".txt" else "rows"
        raise UserError(
            f"{source}: no {share.share:g} of {number} {units} can be held out; expected"
            " data.held_out_path=FILE, or a larger data.held_out_share"
        )


def _units(source: Source) -> Iterator[Iterable[Found]]:
    """Yield what is shared out whole: the documents of a row, a file of the zoo, pieces of text."""
    path = source.path
    if path in ZOO:
        for file in ZOO[path]():
            yield [Found(str(file), Passage(file.read_text(encoding="utf-8", errors="replace")))]
    elif kind_of(Path(path)) == ".txt":
        for found in _of_text(Path(path), PIECE if source.share is None else SHARED_PIECE):
            yield [found]
    else:
        for row in scan_rows(path, source.part):
            yield _of_row(row, source)


def require_there(source: Source) -> None:
    """Refuse what is no file of a known kind, no data set's name and not the zoo's."""
    path = source.path
    if path in ZOO or Path(path).is_dir():
        return
    known = kind_of(Path(path)) in SUFFIXES
    if Path(path).is_file() and not known:
        raise UserError(f"{source}: expected {PLACES}")
    # A name of the Hub has no suffix of ours, and one slash at most.
    if not Path(path).is_file() and (known or path.startswith("zoo:") or not _may_be_on_hub(path)):
        raise UserError(f"{source}: no such file; expected {PLACES}")


def require_readable(source: Source) -> None:
    """Refuse a source of whose first rows none could be trained on, without reading the others.

    Raises:
        UserError: see `documents`; or with what is wrong with the first row.
    """
    first: RowError | None = None
    for found in islice(documents(source), ROWS_UNTIL_SURE):
        if not isinstance(found.document, RowError):
            return
        first = first or found.document
    raise (
        UserError(f"{source}: holds no text; expected rows to train on") if first is None else first
    )


def first_document(source: Source) -> Document | None:
    """Return what the first row holds that can be used; None: it is not among the first ones."""
    for found in islice(documents(source), ROWS_UNTIL_SURE):
        if not isinstance(found.document, RowError):
            return found.document
    return None


def _may_be_on_hub(path: str) -> bool:
    return bool(path) and not path.startswith((".", "/", "~")) and path.count("/") <= 1


def _of_text(file: Path, size: int) -> Iterator[Found]:
    with opened(file) as text:
        for piece in pieces(iter(lambda: text.read(size), ""), size):
            require_text(str(file), piece.text)
            yield Found(str(file), piece)


def _of_row(row: SourceRow | RowError, source: Source) -> Iterator[Found]:
    try:
        if isinstance(row, RowError):
            raise row
        document = document_of(row, source)
    except RowError as error:
        yield Found(error.where, error)
        return
    if isinstance(document, Passage):
        whole = document.text
        parts = (whole[start : start + PIECE] for start in range(0, len(whole), PIECE))
        for piece in pieces(parts, PIECE):
            yield Found(row.where, piece)
    else:
        yield Found(row.where, document)


def pieces(read: Iterator[str], size: int) -> Iterator[Passage]:
    """Cut a text, which comes in parts of any length, into pieces that are tokenised alone."""
    held = ""
    for part in read:
        held += part
        while len(held) > 2 * size:
            end = _seam(held, size)
            yield Passage(held[:end], ends=False)
            held = held[end:]
    if held:
        yield Passage(held)


def _seam(text: str, size: int) -> int:
    """Return where to cut: behind the end of a line, else before a word, else anywhere."""
    for seam in SEAMS:
        ends = [found.end() for found in seam.finditer(text, 0, size)]
        if ends:
            return ends[-1]
    return size


def document_of(row: SourceRow, source: Source) -> Document:
    """Return what a row holds.

    Raises:
        RowError: it holds nothing that could be trained on.
    """
    fields = row.fields
    names = TALKS if source.field is None else (source.field,)
    for name in names:
        if isinstance(fields.get(name), list) and fields[name]:
            return read_conversation(row, fields[name], source.roles)
    if source.field is None and "token_ids" in fields:
        return _written(row)
    text = fields.get("text" if source.field is None else source.field)
    if isinstance(text, str):
        if not text:
            raise RowError(row.where, "an empty text")
        return Passage(text)
    known = "a field `text`, `messages` or `conversations`"
    expected = known if source.field is None else f"the field {source.field!r}, data.field"
    raise RowError(row.where, f"expected {expected}")


def _written(row: SourceRow) -> Written:
    try:
        unsealed(row.fields)
    except ValueError as error:
        raise RowError(row.where, f"not as it was written ({error})") from None
    token_ids: Any = row.fields["token_ids"]
    num_prompt: Any = row.fields.get("num_prompt_tokens")
    good = isinstance(token_ids, list) and all(type(token) is int for token in token_ids)
    if not good or type(num_prompt) is not int or not 0 < num_prompt < len(token_ids):
        expected = "expected `token_ids` (integers) and a smaller `num_prompt_tokens`"
        raise RowError(row.where, expected)
    return Written(tuple(token_ids), num_prompt)


def as_text(found: Found) -> Found:
    """Return a document as plain text; of a message, `role: content`."""
    document = found.document
    if isinstance(document, Written):
        return Found(found.where, RowError(found.where, "holds token ids; expected text"))
    if not isinstance(document, Conversation):
        return found
    try:
        lines = [f"{m.role}: {m.text(found.where)}" for m in document.messages]
    except UserError as error:
        reason = str(error).removeprefix(f"{found.where}: ")
        return Found(found.where, RowError(found.where, reason))
    return Found(found.where, Passage("\n".join(lines)))


def data_digest(source: Source) -> str:
    """Return the digest of what `documents` would read.

    Raises:
        UserError: it cannot be read.
    """
    if source.path in ZOO:
        return zoo_digest(source.path)
    require_there(source)
    if Path(source.path).is_file():
        found = file_digest(source.path, source.option)
        require_whole(Path(source.path), source.option)
        return found
    return dataset_digest(source.path, source.part)


def zoo_digest(path: str) -> str:
    """Return the digest of a text of the zoo."""
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in ZOO[path]()]
    return digest_of("\0".join(texts).encode())

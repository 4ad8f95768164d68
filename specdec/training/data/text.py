"""Training text: `.txt`, or JSONL rows with `text`, `messages`, `conversations` or `token_ids`.

`zoo:train` and `zoo:held_out` are the source files that the embedded models were made with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from specdec.core.digest import digest_of
from specdec.core.errors import UserError
from specdec.core.jsonl import read_jsonl, read_text
from specdec.prompts import Conversation, Row, read_conversation
from specdec.training.data.manifest import file_digest
from specdec.zoo.stdlib import held_out_files, training_files

ZOO: Mapping[str, Callable[[], list[Path]]] = {
    "zoo:train": training_files,
    "zoo:held_out": held_out_files,
}


@dataclass(frozen=True)
class Written:
    """What the verifier wrote after a prompt, token for token."""

    token_ids: tuple[int, ...]  # the prompt's first
    num_prompt_tokens: int


Document = str | Conversation | Written


def read_texts(path: str | Path, field: str = "data.path") -> list[str]:
    """Read every document as plain text; of a message, `role: content`."""
    return [
        _as_text(document, f"{field}={str(path)!r}") for document in read_documents(path, field)
    ]


def _as_text(document: Document, where: str) -> str:
    if isinstance(document, str):
        return document
    if isinstance(document, Written):
        raise UserError(f"{where}: holds token ids; expected text")
    return "\n".join(f"{m.role}: {m.text(where)}" for m in document.messages)


def read_documents(path: str | Path, field: str = "data.path") -> list[Document]:
    """Read every document of a file, or of the zoo; a `.txt` file is one document.

    Raises:
        UserError: the file is missing, empty, of another kind, or has a row without a known text
            field; `field` is how the message names it.
    """
    require_text_file(path, field)
    if path in ZOO:
        return [*_zoo_texts(str(path))]
    path = Path(path)
    if path.suffix == ".jsonl":
        documents = [_document(path, number, row) for number, row in read_jsonl(path)]
    else:
        documents: list[Document] = [read_text(path)]
    documents = [document for document in documents if document]
    if not documents:
        raise UserError(f"{field}={str(path)!r}: the file holds no text")
    return documents


def require_text_file(path: str | Path, field: str) -> None:
    """Refuse what is no file of a known kind, nor the zoo's, without reading it."""
    if path in ZOO:
        return
    if not Path(path).is_file():
        raise UserError(
            f"{field}={str(path)!r}: no such file; expected one, zoo:train or zoo:held_out"
        )
    if Path(path).suffix not in (".jsonl", ".txt"):
        raise UserError(f"{field}={str(path)!r}: expected a file ending in .txt or .jsonl")


def _zoo_texts(name: str) -> list[str]:
    return [file.read_text(encoding="utf-8", errors="replace") for file in ZOO[name]()]


def data_digest(path: str, field: str = "data.path") -> str:
    """Return the digest of what `read_documents` would read.

    Raises:
        UserError: it cannot be read; `field` is how the message names it.
    """
    if path in ZOO:
        return digest_of("\0".join(_zoo_texts(path)).encode())
    return file_digest(path, field)


def _document(path: Path, number: int, row: dict[str, Any]) -> Document:
    if isinstance(row.get("text"), str):
        return row["text"]
    turns = row.get("messages") or row.get("conversations")  # a null counts as absent
    if isinstance(turns, list):
        return read_conversation(Row(f"{path}:{number}", number, row), turns)
    if "token_ids" in row:
        return _written(path, number, row)
    raise UserError(f"{path}:{number}: expected a field `text`, `messages` or `conversations`")


def _written(path: Path, number: int, row: dict[str, Any]) -> Written:
    token_ids, asked = row["token_ids"], row.get("num_prompt_tokens")
    good = isinstance(token_ids, list) and all(type(token) is int for token in token_ids)
    if not good or type(asked) is not int or not 0 < asked < len(token_ids):
        raise UserError(
            f"{path}:{number}: expected `token_ids` (integers) and a smaller `num_prompt_tokens`"
        )
    return Written(tuple(token_ids), asked)


def joined(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:  # [T] int64
    """Tokenize all texts into one row, each ended by the end-of-text token if there is one."""
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    token_ids: list[int] = []
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        token_ids += [*ids, *ends]
    return torch.tensor(token_ids)

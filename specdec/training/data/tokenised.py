"""Training text as token ids: made once, by whichever run comes first, and read by all others."""

import json
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import tokenizers
import transformers
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from specdec.core.cache_folder import cache_folder
from specdec.core.digest import digest_of
from specdec.core.errors import RowError, Unwritable, UserError
from specdec.core.jsonl import make_folder, writing
from specdec.prompts import Conversation
from specdec.results.progress import Progress
from specdec.training.data.answers import AnswerSplitter, behind, end_of, tokens_alone, tokens_of
from specdec.training.data.left_out import LeftOut
from specdec.training.data.reading import Reading, Source
from specdec.training.data.sources import Sources, plain_text
from specdec.training.data.text import Found, Passage, Written, as_text, data_digest, documents
from specdec.training.data.token_store import TokenStore, TokenWriter

FORMAT = 2  # of what is stored: raised when the same data would become other tokens
AT_ONCE = 1 << 20  # characters that are tokenised together
LEAST = 3  # tokens of the last block of a text
LEFT_OUT = "left_out"


@dataclass(frozen=True)
class Tokenised:
    """Token ids of training data, and what is left out of them."""

    store: TokenStore
    left_out: LeftOut


def tokenised(
    source: Source,
    reading: Reading,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    vocab_size: int,
    plain: bool = False,
    sources: Sources | None = None,
) -> Tokenised:
    """Return the samples of a source: plain text in blocks of `length`, else by `AnswerSplitter`.

    They are stored under the digest of all that decides on them, in `data.tokens_path` or the
    user's cache; one process makes them, and others wait for it. With `plain` messages are text,
    too, `role: content`, and all text is one sample; with `sources` each is a source and a text.

    Raises:
        UserError: there is no such data, most of it is of no use, or all is not with
            `data.strict`.
    """
    home = _home(reading)
    folder = home / _key(source, reading, tokenizer, length, vocab_size, plain, sources)
    make_folder(home)
    lock = FileLock(folder.with_suffix(".lock"))
    with writing(folder):
        lock.acquire()
    try:
        store = TokenStore.open(folder)
        if store is None:
            if folder.exists():
                what = "not whole, or not as it was written"
                print(f"{folder}: {what}; {source} is tokenised again", flush=True)
            builder = Builder(source, reading, tokenizer, length, vocab_size, plain, sources)
            store = builder.build(folder)
    finally:
        lock.release()
    left_out = LeftOut.of_json(store.header[LEFT_OUT])
    left_out.check(source, reading.strict)
    return Tokenised(store, left_out)


def _home(reading: Reading) -> Path:
    if reading.tokens_path is not None:
        return Path(reading.tokens_path)
    home = cache_folder("tokens")
    try:
        make_folder(home)
        writable = os.access(home, os.W_OK)
    except Unwritable:
        writable = False
    # Nobody has asked for a cache: where there is room for none, a temporary one will do.
    return home if writable else Path(gettempdir()) / f"specdec-tokens-{os.getuid()}"


def _key(
    source: Source,
    reading: Reading,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    vocab_size: int,
    plain: bool,
    sources: Sources | None,
) -> str:
    """Tell apart what would become other tokens."""
    parts = {
        "format": FORMAT,
        "data": data_digest(source),
        "path": source.path,  # which complaints name
        "field": source.field,
        "share": None if source.share is None else astuple(source.share),
        "roles": source.roles.more,
        "tokenizer": tokenizer_digest(tokenizer),
        "template": str(tokenizer.chat_template),
        "options": reading.options,
        "length": length,
        "vocab_size": vocab_size,
        "plain": plain,
        "versions": [transformers.__version__, tokenizers.__version__],
    }
    if sources is not None:
        parts["sources"] = astuple(sources)
    return digest_of(json.dumps(parts, sort_keys=True, default=str).encode())


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the digest of what makes tokens of a text."""
    known: dict[str, Any] = {"kind": type(tokenizer).__name__, "eos": tokenizer.eos_token_id}
    backend = getattr(tokenizer, "backend_tokenizer", None)  # the slow ones have none
    if backend is None:
        known |= {"vocab": tokenizer.get_vocab(), "told": str(tokenizer.init_kwargs)}
    else:
        written = json.loads(backend.to_str())
        known |= {n: v for n, v in written.items() if n not in ("truncation", "padding")}
    return digest_of(json.dumps(known, sort_keys=True, default=str).encode())


@dataclass
class Builder:
    """Makes a store: reads rows one after another, and holds none longer than it must."""

    source: Source
    reading: Reading
    tokenizer: PreTrainedTokenizerBase
    length: int
    vocab_size: int
    plain: bool
    sources: Sources | None = None  # of a model with an encoder
    left_out: LeftOut = field(default_factory=LeftOut)
    _kind: type | None = None  # of the first row that can be used
    _waiting: list[Passage] = field(default_factory=list[Passage])
    _places: list[str] = field(default_factory=list[str])
    _num_waiting: int = 0  # characters

    def build(self, folder: Path) -> TokenStore:
        """Write the store into a folder."""
        with TokenWriter(folder) as writer, Progress(None, "tokenise", "row") as bar:
            for found in documents(self.source):
                self._read(found, writer)
                if self.left_out.is_hopeless:
                    break
                bar.update()
            self._write_texts(writer)
            if self.plain:
                writer.cut(max(1, writer.num_tokens), 1)
            elif self._kind is Passage:
                writer.cut(self.length, LEAST)
            self.left_out.num_samples = writer.num_samples
            self.left_out.check(self.source, self.reading.strict)
            writer.header = {LEFT_OUT: self.left_out.to_json()}
        store = TokenStore.open(folder)
        assert store is not None, f"{folder}: not as it was written"
        return store

    def _read(self, found: Found, writer: TokenWriter) -> None:
        """Take a row as far as it can be used, or count it."""
        document = (as_text(found) if self.plain else found).document
        self.left_out.num_rows += not isinstance(document, Passage) or document.ends
        try:
            if isinstance(document, RowError):
                raise document
            self._kind = self._kind or type(document)
            if not isinstance(document, self._kind):
                reason = f"{NAMES[type(document)]} among {NAMES[self._kind]}; expected one of both"
                raise RowError(found.where, reason)
            if self.sources is not None and isinstance(document, Passage):
                raise plain_text(self.source)
            if isinstance(document, Passage):
                self._hold(document, found.where, writer)
            elif self.sources is not None:
                read = self.sources.sample(document, self.tokenizer, found.where, self.left_out)
                writer.add(*self._cut(*read, found.where))
            elif isinstance(document, Conversation):
                for token_ids, counted in self._splitter.samples(
                    document, found.where, self.left_out
                ):
                    writer.add(token_ids, counted)
            else:
                ids, num_prompt = list(document.token_ids), document.num_prompt_tokens
                writer.add(*self._cut(ids[:num_prompt], ids[num_prompt:], found.where))
        except RowError as error:
            self.left_out.add_row(error)

    @property
    def _splitter(self) -> AnswerSplitter:
        if not self.tokenizer.chat_template:
            reason = "the tokenizer has no chat template; expected plain `text`"
            raise UserError(f"{self.source}: {reason}")
        return AnswerSplitter(self.tokenizer, self.length, self.reading.options)

    def _cut(self, prompt: list[int], text: list[int], where: str) -> tuple[list[int], list[bool]]:
        """Return a sample of at most `length` tokens, and which of them count."""
        token_ids, num_prompt = prompt + text, len(prompt)
        if not all(0 <= token < self.vocab_size for token in token_ids):
            raise RowError(where, "token ids of another tokenizer")
        if num_prompt >= self.length:
            raise RowError(where, behind(self.length))
        self.left_out.num_cut += len(token_ids) > self.length
        counted = [index >= num_prompt for index in range(len(token_ids))]
        return token_ids[: self.length], counted[: self.length]

    def _hold(self, text: Passage, where: str, writer: TokenWriter) -> None:
        self._waiting.append(text)
        self._places.append(where)
        self._num_waiting += len(text.text)
        if self._num_waiting >= AT_ONCE:
            self._write_texts(writer)

    def _write_texts(self, writer: TokenWriter) -> None:
        """Tokenise what waits; each text ends with the end-of-text token, if there is one."""
        end = end_of(self.tokenizer)
        for text, found in zip(self._waiting, self._tokens(), strict=True):
            if isinstance(found, RowError):
                self.left_out.add_row(found)
            else:
                writer.add_text([*found, *end] if text.ends else found)
        self._waiting, self._places, self._num_waiting = [], [], 0

    def _tokens(self) -> Sequence[list[int] | RowError]:
        texts = [text.text for text in self._waiting]
        try:
            return tokens_of(texts, self.tokenizer) if texts else []
        except Exception:  # whatever a tokenizer makes of a text that it cannot take: which is it?
            places = zip(texts, self._places, strict=True)
            return [self._alone(text, where) for text, where in places]

    def _alone(self, text: str, where: str) -> list[int] | RowError:
        try:
            return tokens_alone(text, self.tokenizer, where)
        except RowError as error:
            return error


NAMES = {Passage: "plain text", Conversation: "conversations", Written: "written tokens"}

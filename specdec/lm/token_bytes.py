"""What the tokens of a tokenizer spell, in bytes: two vocabularies are compared by it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from specdec.core.errors import UserError
from specdec.core.narrowing import is_mapping

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what stands for a space in pieces of SentencePiece
PROBE = "The Fox, 42: naive (or not)?\n    It's a_b = 'c';  fin."
Spell = Callable[[str], bytes]


@dataclass(frozen=True, eq=False)
class TokenBytes:
    """A tokenizer, and what each of its tokens spells.

    Args:
        tokenizer: of transformers, and within it of the library `tokenizers`.
        spelt: by id, the bytes of a token; special ones spell nothing and are not there.
        specials: the others, by id, as they are written.
        byte_ids: the tokens that spell one byte each, by byte.
        prefix: the special tokens that a text begins with.
        adds_space: whether a text's first token spells a space that the text does not have.
    """

    tokenizer: PreTrainedTokenizerBase
    spelt: Mapping[int, bytes]
    specials: Mapping[int, str]
    byte_ids: Mapping[int, int]
    prefix: tuple[int, ...]
    adds_space: bool

    @property
    def begin_id(self) -> int | None:
        """The token that stands before a text."""
        return _id(self.tokenizer.bos_token_id)

    @property
    def end_id(self) -> int | None:
        """The token that stands behind a text."""
        return _id(self.tokenizer.eos_token_id)

    def said(self, token_ids: Sequence[int]) -> bytes:
        """Join what tokens spell; those that spell nothing are left out."""
        return b"".join(self.spelt.get(token, b"") for token in token_ids)

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a text, and where each of them ends in it, in characters.

        What looks like a special token in it is text like any other.
        """
        found = self.tokenizer(
            text,
            add_special_tokens=False,
            return_offsets_mapping=True,
            split_special_tokens=True,
            verbose=False,
        )
        token_ids: list[int] = list(found["input_ids"])
        ends: list[int] = []
        for _, end in found["offset_mapping"]:
            ends.append(max(end, ends[-1]) if ends else end)
        if self.adds_space and not text.startswith(" ") and self.said(token_ids[:1]) == b" ":
            ends[0] = 0  # a space that the text does not have ends where it begins
        return token_ids, ends

    def encode_behind(self, before: str, text: str) -> list[int] | None:
        """Return the tokens of a text that stands behind another; None: none spell it exactly.

        Tokens are as the text before makes them, unless one of them reaches into it.
        """
        wanted = text.encode()
        # A line that begins is neutral; nothing before it is how a text begins.
        for context in dict.fromkeys((before, "\n", "")):
            token_ids, ends = self.encode(context + text)
            first = sum(end <= len(context) for end in ends)
            if self.said(token_ids[first:]) == wanted:
                return token_ids[first:]
        return None

    def returns(self, text: str) -> bool:
        """Whether the tokens of a text spell it, and nothing else."""
        said = self.said(self.encode(text)[0])
        return said == text.encode() or (self.adds_space and said == f" {text}".encode())


def _id(found: object) -> int | None:
    return found if isinstance(found, int) else None


@lru_cache(maxsize=8)
def spelling_of(tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
    """Read what the tokens of a tokenizer spell.

    Raises:
        UserError: its tokens do not say, or it is not of the library `tokenizers`.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        kind = type(tokenizer).__qualname__
        raise UserError(
            f"{kind} is not of the library tokenizers, so what its tokens spell is not known"
        )
    spell = _spelling(backend.decoder)
    added: Mapping[int, Any] = tokenizer.added_tokens_decoder
    special = {token for token, how in added.items() if how.special} | set(
        tokenizer.all_special_ids
    )
    spelt: dict[int, bytes] = {}
    specials: dict[int, str] = {}
    for written, token in tokenizer.get_vocab().items():
        if token in special:
            specials[token] = written
        elif token in added:
            spelt[token] = written.encode()
        else:
            spelt[token] = spell(written)
    byte_ids = {said[0]: token for token, said in sorted(spelt.items()) if len(said) == 1}
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    first = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    said = b"".join(spelt.get(token, b"") for token in bare)
    found = TokenBytes(
        tokenizer, spelt, specials, byte_ids, tuple(whole[:first]), said.startswith(b" ")
    )
    _require_understood(found)
    return found


def _require_understood(found: TokenBytes) -> None:
    """Refuse tokens that the tokenizer itself spells otherwise, spaces aside."""
    token_ids, _ = found.encode(PROBE)
    ours = found.said(token_ids).decode("utf-8", "replace")
    theirs = str(found.tokenizer.decode(token_ids, skip_special_tokens=True))
    if "".join(ours.split()) != "".join(theirs.split()):
        raise UserError(
            "what the tokens of its tokenizer spell is not known:"
            f" {theirs!r} was taken for {ours!r}"
        )


def _spelling(decoder: Any) -> Spell:
    """Return how a token is read, by what turns tokens into text."""
    parts = list(_parts(json.loads(decoder.__getstate__()) if decoder is not None else None))
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        return _of_bytes
    for part in parts:
        if part["type"] == "WordPiece":
            return lambda token: _of_word(token, part["prefix"])
        if part["type"] == "BPEDecoder":
            return lambda token: _of_ending(token, part["suffix"])
    if not parts:
        return lambda token: f" {token}".encode()
    return _of_piece


def _parts(decoder: object) -> Iterator[Mapping[str, Any]]:
    if not is_mapping(decoder):
        return
    if decoder["type"] == "Sequence":
        for each in decoder["decoders"]:
            yield from _parts(each)
    else:
        yield decoder


def _of_word(token: str, prefix: str) -> bytes:
    goes_on = token.startswith(prefix) and token != prefix
    return (token.removeprefix(prefix) if goes_on else f" {token}").encode()


def _of_ending(token: str, suffix: str) -> bytes:
    ends = token.endswith(suffix) and token != suffix
    return (f"{token.removesuffix(suffix)} " if ends else token).encode()


def _of_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()


@lru_cache(maxsize=1)
def _alphabet() -> Mapping[str, int]:
    """Return the byte that each letter of byte-level vocabularies stands for (GPT-2).

    Bytes that print stand for themselves; the others, in order, for the letters from 256 on.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {
        **{chr(byte): byte for byte in plain},
        **{chr(256 + place): byte for place, byte in enumerate(others)},
    }


def _of_bytes(token: str) -> bytes:
    letters = _alphabet()
    if all(letter in letters for letter in token):
        return bytes(letters[letter] for letter in token)
    return token.encode()

"""How a draft model of another tokenizer reads the verifier's text, and what it can say of it.

Timor et al., "Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for
Heterogeneous Vocabularies", 2025 (arXiv 2502.05202).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from specdec.core.errors import UserError
from specdec.lm.respelled import Respelled
from specdec.lm.token_bytes import PROBE, TokenBytes, spelling_of

SAME = "same"  # the draft's tokens are the verifier's
INTERSECTION = "intersection"  # it drafts tokens that both have (token-level intersection, TLI)
STRINGS = "strings"  # it drafts text, in tokens of its own (string-level exact match, SLEM)
VOCABULARIES = (SAME, INTERSECTION, STRINGS)
LEAST_SHARE = 0.05  # of the smaller vocabulary that both must have


@dataclass(frozen=True, eq=False)
class Translation:
    """Between a verifier's tokens and a draft model's.

    Args:
        kind: INTERSECTION or STRINGS.
        verifier: what the verifier's tokens spell.
        draft: what the draft's tokens spell.
    """

    kind: str
    verifier: TokenBytes
    draft: TokenBytes

    @cached_property
    def pairs(self) -> dict[int, int]:
        """The tokens that both have, the draft's by the verifier's, one for one.

        Those of text that spell the same bytes; special ones as `twins`.
        """
        ours: dict[bytes, int] = {}
        for token, said in sorted(self.draft.spelt.items(), key=_by_words(self.draft)):
            ours.setdefault(said, token)
        found: dict[int, int] = {}
        for token, said in sorted(self.verifier.spelt.items(), key=_by_words(self.verifier)):
            same = ours.pop(said, None) if said else None
            if same is not None:
                found[token] = same
        return found | self.twins

    @cached_property
    def twins(self) -> dict[int, int]:
        """The special tokens that both have, the draft's by the verifier's.

        Those that begin or end a text, whatever they are called, and those of one name.
        """
        names = {name: token for token, name in self.draft.specials.items()}
        found = {
            token: names[name] for token, name in self.verifier.specials.items() if name in names
        }
        for theirs, ours in (
            (self.verifier.begin_id, self.draft.begin_id),
            (self.verifier.end_id, self.draft.end_id),
        ):
            if theirs is not None and ours is not None:
                found[theirs] = ours
        return found

    def behind(self, text: Respelled, said: bytes) -> list[int] | None:
        """Return the verifier's tokens of what would go on a text of `reading`.

        A character that is not whole is left out. None: no tokens of the verifier's spell it.
        """
        unfinished = text.unfinished
        rest = next((n for n in range(len(said) + 1) if _is_whole(unfinished + said[:n])), None)
        if rest is None:
            return None
        head = [self.verifier.byte_ids.get(byte) for byte in said[:rest]]
        if None in head:
            return None
        before = text.tail + _whole(unfinished + said[:rest])
        tail = self.verifier.encode_behind(before, _whole(said[rest:]))
        return None if tail is None else [*(token for token in head if token is not None), *tail]

    def reading(self) -> Respelled:
        """Begin an empty text of the verifier's, as the draft reads it."""
        return Respelled(self.verifier, self.draft, self.twins)


def _is_whole(said: bytes) -> bool:
    return len(_whole(said).encode()) == len(said)


def _whole(said: bytes) -> str:
    """Return the characters up to the first that is cut off, or is none."""
    try:
        return said.decode()
    except UnicodeDecodeError as error:
        return said[: error.start].decode()


@runtime_checkable
class Translating(Protocol):
    """What a language model may have besides: how it reads another model's tokens."""

    @property
    def translation(self) -> Translation | None:
        """None: they are its own."""
        ...


def translation_of(model: object) -> Translation | None:
    """Return how a model reads a verifier's tokens; None: they are its own."""
    return model.translation if isinstance(model, Translating) else None


def _by_words(spelling: TokenBytes) -> Callable[[tuple[int, bytes]], tuple[bool, int]]:
    """Order tokens so that pieces of text stand before single bytes that spell the same."""

    def place(entry: tuple[int, bytes]) -> tuple[bool, int]:
        written = spelling.tokenizer.convert_ids_to_tokens(entry[0])
        return str(written).startswith("<0x"), entry[0]

    return place


def translated(
    kind: str,
    verifier: PreTrainedTokenizerBase,
    draft: PreTrainedTokenizerBase,
    called: str,
    option: str = "vocabulary",
) -> Translation:
    """Say how a draft model reads a verifier's text.

    Args:
        kind: INTERSECTION or STRINGS.
        verifier: its tokenizer.
        draft: the draft model's.
        called: the draft, as complaints begin.
        option: the option or parameter that asked for it.

    Raises:
        UserError: the vocabularies have too little in common, or text does not come back from one
            of the tokenizers as it was.
    """
    found = Translation(kind, _spelling(verifier, called, "verifier"), _spelling(draft, called))
    if kind == INTERSECTION:
        _require_common(found, called, option)
    else:
        _require_strings(found, called, option)
    return found


def _spelling(tokenizer: PreTrainedTokenizerBase, called: str, whose: str = "draft") -> TokenBytes:
    try:
        return spelling_of(tokenizer)
    except UserError as error:
        raise UserError(f"{called}: of the {whose}, {error}") from None


def _require_common(found: Translation, called: str, option: str) -> None:
    common = len(found.pairs) - len(found.twins)
    sizes = [len(each.spelt) for each in (found.draft, found.verifier)]
    if common < max(2, LEAST_SHARE * min(sizes)):
        raise UserError(
            f"{called}: {common} of its {sizes[0]} tokens are among the verifier's {sizes[1]}, too"
            f" few for {option}={INTERSECTION}; expected {option}={STRINGS}, or another draft"
        )


def _require_strings(found: Translation, called: str, option: str) -> None:
    for whose, each in (("its", found.draft), ("the verifier's", found.verifier)):
        if not each.returns(PROBE):
            back = each.said(each.encode(PROBE)[0]).decode("utf-8", "replace")
            raise UserError(
                f"{called}: {option}={STRINGS} needs tokenizers that give text back as it was, and"
                f" {whose} makes {back!r} of {PROBE!r}; expected {option}={INTERSECTION}"
            )

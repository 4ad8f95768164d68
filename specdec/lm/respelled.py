"""A text that grows in one model's tokens, kept in another model's."""

import codecs
from collections.abc import Sequence

from specdec.lm.token_bytes import TokenBytes

WINDOW = 16  # tokens at the end that are encoded again when a text goes on
TAKEN_OVER = 8  # of them, that give way to the new ones: those before may be cut words


class Respelled:
    """A growing text of the tokens `read`, in the tokens `write`.

    What is new is encoded together with the last tokens before it, which may thereby become others:
    a word goes on where it had ended. Tokens further back stay, so the price of a step does not
    depend on the length of the text. The new encoding takes over in the middle of that window,
    where a token ends in both, since the first ones may be words that the window cut (the look-back
    of Timor et al. 2025, arXiv 2502.05202, section 3).

    A character whose bytes are not all there yet is spelt byte by byte, if there are such tokens,
    and otherwise left out until it is whole. Special tokens end what is encoded together.
    """

    def __init__(self, read: TokenBytes, write: TokenBytes, twins: dict[int, int]):
        """Begin an empty text; `twins` are the special tokens that both know, by those read."""
        self.token_ids: list[int] = [*write.prefix]
        self._read, self._write, self._twins = read, write, twins
        self.num_read = 0  # tokens of the text that it was given
        self._begin()

    def _begin(self) -> None:
        """Begin a stretch of text between special tokens."""
        self._first = len(self.token_ids)  # its first token
        self._text = ""
        self._ends: list[int] = []  # of its tokens, in characters
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def unfinished(self) -> bytes:
        """The bytes at the end that are no character yet."""
        return self._bytes.getstate()[0]

    @property
    def tail(self) -> str:
        """What was last read, as much as decides how the text goes on."""
        return self._text[self._start_of(self._window) :]

    def follow(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Read what a text has more than it had, and return all of it."""
        said = b""
        for place in range(self.num_read, len(token_ids)):
            token = token_ids[place]
            if token not in self._read.specials:
                said += self._read.spelt.get(token, b"")
                continue
            twin = self._twins.get(token)
            if twin is None and token != self._read.begin_id:
                said += self._read.specials[token].encode()  # as it is written
                continue
            self._go_on(said)
            said = b""
            if twin is not None and not (place == 0 and self._write.prefix[-1:] == (twin,)):
                self.token_ids.append(twin)
            self._begin()
        self._go_on(said)
        self.num_read = len(token_ids)
        return self.token_ids

    def _go_on(self, said: bytes) -> None:
        if not said:
            return
        if self._read.adds_space and not self._text and not self.unfinished:
            said = said.removeprefix(b" ")
        del self.token_ids[self._first + len(self._ends) :]
        text = self._bytes.decode(said)
        if text:
            self._encode(text)
        spelt = [self._write.byte_ids.get(byte) for byte in self.unfinished]
        if None not in spelt:
            self.token_ids += [token for token in spelt if token is not None]

    def _encode(self, text: str) -> None:
        window = self._window
        start = self._start_of(window)
        self._text += text
        token_ids, ends = self._write.encode(self._text[start:])
        ends = [start + end for end in ends]
        kept, first = window, 0
        if start:
            meeting = self._meeting(window, ends)
            if meeting is not None:
                kept = sum(end <= meeting for end in self._ends)
                first = sum(end <= meeting for end in ends)
        self.token_ids[self._first + kept :] = token_ids[first:]
        self._ends[kept:] = ends[first:]

    def _meeting(self, window: int, ends: Sequence[int]) -> int | None:
        """Return where the new encoding takes over; None: no token ends in both."""
        known = set(self._ends[window:])
        common = [end for end in ends if end in known]
        middle = self._ends[-TAKEN_OVER - 1]
        before = [end for end in common if end <= middle]
        return before[-1] if before else next(iter(common), None)

    @property
    def _window(self) -> int:
        """The first token of the window; several may stand for one character."""
        first = max(0, len(self._ends) - WINDOW)
        while 0 < first < len(self._ends) and self._ends[first] == self._ends[first - 1]:
            first -= 1
        return first

    def _start_of(self, token: int) -> int:
        return self._ends[token - 1] if token else 0

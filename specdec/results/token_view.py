"""How each token of a text came about: a candidate that was accepted, or one of the verifier's."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specdec.core.outcome import Outcome
from specdec.core.trace import Step, Trace

ROOT = 0
PART = "\ufffd"  # what decoding makes of bytes that are no whole character
LONGEST = 4  # bytes of a character in UTF-8, and so tokens
Words = Callable[[Sequence[int]], str]  # the text of some tokens
Piece = Callable[[int], str | None]  # a token as the vocabulary has it, if it does
Experts = tuple[tuple[int, ...], ...]  # [L][k]
# How byte-level vocabularies write bytes (Radford et al. 2019): printable ones as they are, the
# others as the characters from 256 on.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = sorted(set(range(256)) - set(PRINTABLE))
BYTES = {chr(byte): byte for byte in PRINTABLE} | {chr(256 + n): b for n, b in enumerate(OTHERS)}


@dataclass(frozen=True)
class SeenToken:
    """A token of the text, and what stood in its place among the candidates.

    `depth` counts from 1 within a step: accepted tokens first, then the verifier's own. A character
    of several tokens is the text of the last of them; those before it have none, but are a `part`.
    `experts` are those that the verifier took for the token when it read it, [L][k]; nobody reads
    the last token of a text.
    """

    text: str
    kind: str  # accepted, recovered or bonus
    depth: int
    rejected: tuple[str, ...]  # candidates for this place that were not taken, in drawing order
    part: str = ""  # a token without a text, as the vocabulary has it
    experts: Experts = ()

    def to_row(self) -> dict[str, Any]:
        """Leave out what most tokens do not have."""
        rare = ("part", "experts")
        return {name: value for name, value in asdict(self).items() if name not in rare or value}


class Spelling:
    """What each token adds to a text, where characters may be split over tokens."""

    def __init__(self, token_ids: Sequence[int], words: Words, piece: Piece):
        self._token_ids = list(token_ids)
        self._words = words
        self._piece = piece
        self.texts: list[str] = []
        # Per token: where what it is read with begins, and where that is all of it but this part.
        self._starts: list[tuple[int, int]] = []
        context = done = 0
        for end in range(1, len(token_ids) + 1):
            self._starts.append((context, done))
            text = self._added(context, done, self._token_ids[done:end])
            if text.endswith(PART) and end < min(done + LONGEST, len(token_ids)):
                self.texts.append("")
                continue
            self.texts.append(text)
            context, done = done, end

    def _added(self, context: int, done: int, token_ids: Sequence[int]) -> str:
        """Return what tokens add to a text; words in front tell whether they begin with a space."""
        known = self._token_ids[context:done]
        return self._words([*known, *token_ids])[len(self._words(known)) if known else 0 :]

    def instead(self, place: int, token_id: int) -> str:
        """Return what another token would add at some place; its bytes if it is but a part."""
        context, done = self._starts[place]
        text = self._added(context, done, [*self._token_ids[done:place], token_id])
        return self._spelt(token_id) if PART in text else text

    def part(self, place: int) -> str:
        """Return the bytes of a token that adds no text; "" of all others."""
        return "" if self.texts[place] else self._spelt(self._token_ids[place])

    def _spelt(self, token_id: int) -> str:
        piece = self._piece(token_id)
        return f"<{token_id}>" if piece is None else spelt_out(piece)


def spelt_out(piece: str) -> str:
    """Return a token that is no text with what bytes it has: `\\xf0\\x9f`."""
    if not all(character in BYTES for character in piece):  # <0xF0>, of vocabularies of characters
        return piece
    return bytes(BYTES[each] for each in piece).decode("utf-8", errors="backslashreplace")


def token_view(trace: Trace, prompt: str, words: Words, piece: Piece) -> dict[str, Any]:
    """Return a row of `tokens.jsonl`, of a trace whose steps kept their candidates."""
    places = iter(range(len(trace.output_ids)))
    spelling = Spelling(trace.output_ids, words, piece)
    # The verifier's own token is the root of the next step, and is read there.
    following = [*trace.steps[1:], None]
    seen = [
        token
        for step, after in zip(trace.steps, following, strict=True)
        for token in _seen(step, after, places, trace.output_ids, spelling)
    ]
    ids = {"prompt_id": trace.prompt_id, "sample": trace.sample, "turn": trace.turn}
    return {**ids, "prompt": prompt, "tokens": [token.to_row() for token in seen]}


def _seen(
    step: Step,
    after: Step | None,
    places: Iterator[int],
    output_ids: Sequence[int],
    spelling: Spelling,
) -> Iterator[SeenToken]:
    node: int | None = ROOT
    for depth in range(1, step.emitted + 1):
        place = next(places)
        token_id = output_ids[place]
        children = _children(step.candidates, node)
        taken = depth <= step.accepted
        rejected = dict.fromkeys(token for token in children if not taken or token != token_id)
        others = tuple(spelling.instead(place, token) for token in rejected)
        kind, part = "accepted" if taken else _own(step), spelling.part(place)
        experts = _experts(step.routes[depth:] if taken else after.routes if after else ())
        yield SeenToken(spelling.texts[place], kind, depth, others, part, experts)
        node = children.get(token_id) if taken else None


def _experts(routes: Sequence[Experts]) -> Experts:
    return routes[0] if routes else ()


def _own(step: Step) -> str:
    return "bonus" if step.outcome is Outcome.BONUS else "recovered"


def _children(candidates: Sequence[tuple[int, int]], node: int | None) -> dict[int, int]:
    """Return the first child of each token below a node."""
    found: dict[int, int] = {}
    for number, (parent, token_id) in enumerate(candidates, start=1):
        if parent == node:
            found.setdefault(token_id, number)
    return found

"""How each token of a text came about: a candidate that was accepted, or one of the verifier's."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specdec.core.outcome import Outcome
from specdec.core.trace import Step, Trace

ROOT = 0
Words = Callable[[int], str]  # a token's text


@dataclass(frozen=True)
class SeenToken:
    """A token of the text, and what stood in its place among the candidates.

    `depth` counts from 1 within a step: accepted tokens first, then the verifier's own.
    """

    text: str
    kind: str  # accepted, recovered or bonus
    depth: int
    rejected: tuple[str, ...]  # candidates for this place that were not taken, in drawing order


def token_view(trace: Trace, prompt: str, words: Words) -> dict[str, Any]:
    """Return a row of `tokens.jsonl`, of a trace whose steps kept their candidates."""
    output_ids = iter(trace.output_ids)
    tokens = [asdict(token) for step in trace.steps for token in _seen(step, output_ids, words)]
    ids = {"prompt_id": trace.prompt_id, "turn": trace.turn}
    return {**ids, "prompt": prompt, "tokens": tokens}


def _seen(step: Step, output_ids: Iterator[int], words: Words) -> Iterator[SeenToken]:
    node: int | None = ROOT
    for depth in range(1, step.emitted + 1):
        token_id = next(output_ids)
        children = _children(step.candidates, node)
        taken = depth <= step.accepted
        rejected = dict.fromkeys(token for token in children if not taken or token != token_id)
        kind = "accepted" if taken else _own(step)
        yield SeenToken(words(token_id), kind, depth, tuple(map(words, rejected)))
        node = children.get(token_id) if taken else None


def _own(step: Step) -> str:
    return "bonus" if step.outcome is Outcome.BONUS else "recovered"


def _children(candidates: Sequence[tuple[int, int]], node: int | None) -> dict[int, int]:
    """Return the first child of each token below a node."""
    found: dict[int, int] = {}
    for number, (parent, token_id) in enumerate(candidates, start=1):
        if parent == node:
            found.setdefault(token_id, number)
    return found

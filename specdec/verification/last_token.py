"""The token behind each request's accepted path: what it is drawn from, and when."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.on_host import integers
from specdec.core.randomness import Stream, is_plain
from specdec.core.sampling import draw
from specdec.core.shown import Shown
from specdec.core.tree import CandidateTree
from specdec.verification.candidate_nodes import CandidateNodes

# [n] places among the candidate nodes -> [n, V]: what is left of p once all are refused there.
Rest = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True)
class LastToken:
    """Draws from the rest of p where all candidates of the last node were refused, else from p.

    Where reading a number waits for the device, a token is drawn after every node, and comes with
    the numbers that the path depends on. Each is drawn with the uniform that it would be drawn with
    if the path ended there, so that the text is the same.
    """

    shown: Shown
    nodes: CandidateNodes
    rest: Rest

    def ahead(
        self, questions: Callable[[CandidateTree], Sequence[int]]
    ) -> tuple[Tensor, ...]:  # [B, M], or nothing
        """Draw after all nodes if that saves waiting.

        `questions` says how many questions are decided before a path ends at each node of a tree.
        """
        if not self.shown.drawn_ahead:
            return ()
        streams, width = self.shown.numbered, self.shown.probs.shape[1]
        assert streams is not None
        counted = [questions(each.tree) for each in self.shown.proposals]
        padded = [[*counts, *[0] * (width - len(counts))] for counts in counted]
        uniforms = [
            [stream.peek(1 + max(counts))[count] for count in counts]
            for stream, counts in zip(streams, padded, strict=True)
        ]
        every = [(owner, node) for owner in range(len(padded)) for node in range(width)]
        numbers = on_device(uniforms, self.shown.probs.device, torch.float64)
        return (draw(self._weights(every), numbers.view(-1, 1)).view(-1, width),)

    def behind(
        self, lasts: Sequence[int], ahead: Sequence[Sequence[Sequence[float]]]
    ) -> list[int]:  # [B]
        """Return the tokens after the last nodes [B]; `ahead` is what was read of it, if it was."""
        if ahead:
            return [int(row[last]) for row, last in zip(ahead[0], lasts, strict=True)]
        weights = self._weights([*enumerate(lasts)])
        if self.shown.certain:
            return integers(weights.argmax(dim=-1))
        return choose_all(weights, self.shown.streams)

    def _weights(self, where: Sequence[tuple[int, int]]) -> Tensor:  # [n, V]
        places = [self.nodes.places.get(each) for each in where]
        refused = [place for place in places if place is not None]
        if not refused:
            return self.shown.after(where)
        if len(refused) == len(where):
            return self.rest(refused)
        rows = [row for row, place in enumerate(places) if place is not None]
        there = on_device(rows, self.shown.probs.device)
        return self.shown.after(where).index_copy(0, there, self.rest(refused))


def choose_all(weights: Tensor, streams: Sequence[Stream]) -> list[int]:  # [B, V] -> [B]
    """Draw one token from each row, each with its own stream."""
    numbered = [each for each in streams if is_plain(each)]
    if len(streams) == 1 or len(numbered) < len(streams):
        return [each.choose(row) for each, row in zip(streams, weights, strict=True)]
    uniforms = [[each.uniform()] for each in numbered]
    numbers = on_device(uniforms, weights.device, torch.float64)
    return integers(draw(weights, numbers).squeeze(-1))

"""What a rule is shown: the candidate trees of a batch, and what the verifier says of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.on_host import reading_waits
from specdec.core.randomness import RandomStream, Stream, is_plain
from specdec.core.values import Draw, Proposal


@dataclass(frozen=True)
class Shown:
    """B candidate trees, p after each of their nodes, and B streams to decide with.

    All candidates were drawn in one way; trees without any are what every way may come to. If
    `certain`, each row of p is a single token, as at temperature 0: then none needs to be drawn.
    """

    proposals: Sequence[Proposal]
    probs: Tensor  # [B, M, V]: row i is p after node i; rows behind a tree's last node are padding
    streams: Sequence[Stream]
    certain: bool = False

    @property
    def draw(self) -> Draw:
        """How the candidates were drawn."""
        draws = (each.draw for each in self.proposals if each.has_candidates)
        return next(draws, self.proposals[0].draw)

    @cached_property
    def numbered(self) -> list[RandomStream] | None:
        """The streams, if what they draw next can be told beforehand; None: decide one by one."""
        found = [each for each in self.streams if is_plain(each)]
        return found if len(found) == len(self.streams) else None

    @cached_property
    def drawn_ahead(self) -> bool:
        """Whether tokens are drawn after all nodes before any decision, to wait only once."""
        return reading_waits(self.probs.device) and self.numbered is not None

    def some(self, places: Sequence[int]) -> "Shown":
        """Return the same for some of the requests."""
        proposals = [self.proposals[place] for place in places]
        return Shown(
            proposals,
            self.probs[on_device(places, self.probs.device)],
            [self.streams[place] for place in places],
            self.certain,
        )

    def after(self, where: Sequence[tuple[int, int]]) -> Tensor:  # n (request, node) -> [n, V]
        """Return p after some nodes; neighbours without a copy."""
        width = self.probs.shape[1]
        return rows_of(
            self.probs.flatten(0, 1), [request * width + node for request, node in where]
        )


def rows_of(matrix: Tensor, rows: Sequence[int]) -> Tensor:
    """Select rows; neighbours without a copy."""
    first = rows[0] if rows else 0
    if list(rows) == list(range(first, first + len(rows))):
        return matrix[first : first + len(rows)]
    return matrix[on_device(rows, matrix.device)]

"""What rules are enumerated on when a run begins: shapes of candidates, on small tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from specdec.core.tree import CandidateTree
from specdec.core.values import Draw
from specdec.proof.drafting import (
    DRAFTERS,
    Drafted,
    Drafter,
    Parents,
    chain,
    drafts,
    repeated,
    unlikely,
)
from specdec.proof.tables import BOTH_SPARSE, CORNERS, MIXED, NARROW, SPARSE, WIDE, Table

TWO: Parents = (-1, 0, 0)
THREE: Parents = (-1, 0, 0, 0)  # one more than there may be tokens
BELOW_SECOND: Parents = (-1, 0, 0, 2)
FORKED: Parents = (-1, 0, 0, 1, 1)
CROSSED: Parents = (-1, 0, 0, 2, 1, 3, 4)  # a level in another order than the one above it
BINARY: Parents = (-1, 0, 0, 1, 1, 2, 2)
TWO_PATHS: Parents = (-1, 0, 0, 1, 2)
THREE_PATHS: Parents = (-1, 0, 0, 0, 1, 2, 3)
TWO_LONGER: Parents = (-1, 0, 0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Case:
    """Candidates that a rule is tried on. Nodes below `max_depth` or an end token are pruned."""

    draw: Draw
    parents: Parents
    table: Table
    drafter: Drafter
    max_depth: int | None = None
    ends: frozenset[int] = frozenset()

    def __str__(self) -> str:
        shape = CandidateTree(self.parents, self.parents)
        size = shape.num_draft_tokens
        kind = f"a chain of {size}" if shape.is_chain else f"a tree of {size}"
        cut = "" if self.max_depth is None and not self.ends else ", pruned"
        return f"{self.draw.value} candidates, {kind}{cut} ({self.table})"

    @property
    def length(self) -> int:
        """The most tokens of one round."""
        return 1 + max(CandidateTree(self.parents, self.parents).depths)


CHAINS = (
    *((chain(1), table) for table in CORNERS),
    *((chain(2), table) for table in (MIXED, WIDE, BOTH_SPARSE)),
    (chain(3), SPARSE),
)
TREES = (
    *((TWO, table) for table in CORNERS),
    *((THREE, table) for table in (SPARSE, BOTH_SPARSE)),
    (chain(2), MIXED),
    (BELOW_SECOND, BOTH_SPARSE),
    (FORKED, SPARSE),
    *((shape, NARROW) for shape in (BINARY, CROSSED)),
)
PATHS = (
    *((TWO, table) for table in CORNERS),
    *((THREE, table) for table in (SPARSE, BOTH_SPARSE)),
    (chain(2), MIXED),
    *((TWO_PATHS, table) for table in (SPARSE, BOTH_SPARSE)),
    *((shape, NARROW) for shape in (THREE_PATHS, TWO_LONGER)),
)
FIXED = ((chain(1), table) for table in CORNERS), ((s, MIXED) for s in (chain(3), BINARY, CROSSED))
SHAPES: dict[Draw, Sequence[tuple[Parents, Table]]] = {
    Draw.DETERMINISTIC: [pair for pairs in FIXED for pair in pairs],
    Draw.SINGLE: CHAINS,
    Draw.FILTERED: CHAINS,
    Draw.IID: TREES,
    Draw.PATHS: PATHS,
    Draw.WITHOUT_REPLACEMENT: (*TREES, (THREE, MIXED)),
    Draw.TOP_PLUS_ONE: TREES,
}
# What is pruned.
LONGEST = {Draw.SINGLE: chain(2), Draw.FILTERED: chain(2), Draw.PATHS: TWO_PATHS}


def cases(draw: Draw | None) -> Iterator[Case]:
    """Yield what a rule is tried on for a draw; for None what it gets where nothing is proposed."""
    nothing = Draw.DETERMINISTIC
    yield Case(nothing, chain(0), MIXED, DRAFTERS[nothing])
    if draw is None:
        return
    drafter = DRAFTERS[draw]
    for parents, table in SHAPES[draw]:
        yield Case(draw, parents, table, drafter)
    longest = LONGEST.get(draw, BELOW_SECOND)
    yield Case(draw, longest, BOTH_SPARSE, drafter, max_depth=0)
    yield Case(draw, longest, BOTH_SPARSE, drafter, max_depth=1)
    yield Case(draw, longest, BOTH_SPARSE, drafter, ends=frozenset({0}))
    if draw is Draw.DETERMINISTIC:
        for other in (unlikely, repeated):
            yield Case(draw, BINARY, MIXED, other)


@cache
def drafted(case: Case) -> list[Drafted]:
    found = drafts(case.drafter, case.parents, case.table.q)
    if case.max_depth is None and not case.ends:
        return found
    depth = len(case.parents) if case.max_depth is None else case.max_depth
    return [Drafted(each.pruned(depth, case.ends), mass) for each, mass in found]

"""What replay in closed form can compute: a fixed tree and a rule."""

from collections.abc import Mapping
from dataclasses import dataclass

from specdec.core.errors import Unfit
from specdec.core.sampling import Sampling
from specdec.core.values import Draw
from specdec.replay import shares
from specdec.tree.fixed import FixedTree

# What a rule looks at where one token is drawn: its ratio, its q, or all ratios of a path together.
CHAINS = {"rejection": "ratio", "kseq": "ratio", "top_plus_one": "ratio", "match": "match"}
CHAINS |= {"block": "block", "traversal": "block"}
SIBLINGS: Mapping[tuple[str, Draw], shares.Shares] = {
    ("rejection", Draw.IID): shares.rejection_iid,
    ("rejection", Draw.WITHOUT_REPLACEMENT): shares.rejection_without_replacement,
    ("kseq", Draw.IID): shares.kseq,
    ("top_plus_one", Draw.TOP_PLUS_ONE): shares.top_plus_one,
    ("match", Draw.IID): shares.match_iid,
    ("match", Draw.WITHOUT_REPLACEMENT): shares.match_without_replacement,
    ("match", Draw.TOP_PLUS_ONE): shares.match_top_plus_one,
}
LIMITED = {Draw.WITHOUT_REPLACEMENT, Draw.TOP_PLUS_ONE}  # no more children than q has tokens


@dataclass(frozen=True)
class Arm:
    """A tree, and the rule that decides on it.

    Raises:
        Unfit: no closed form is known for this rule and these candidates.
    """

    tree: FixedTree
    rule: str  # as the command line calls it
    temperature: float | None = None  # of the draft; None: the verifier's

    def __post_init__(self) -> None:
        draw, rule = self.tree.draw, self.rule
        known = draw is Draw.DETERMINISTIC and rule in ("rejection", "match")
        known |= draw in (Draw.SINGLE, Draw.FILTERED) and rule in CHAINS
        if not known and (rule, draw) not in SIBLINGS:
            raise Unfit(
                f"verification={rule}: no closed form is known for {draw.value} candidates;"
                " decode them"
            )

    @property
    def num_drafted(self) -> list[int]:
        """The nodes down to each depth, from 0, where all of them are submitted."""
        depths = [len(path) for path in self.tree.nodes]
        return [sum(d <= depth for d in depths) for depth in range(self.tree.max_depth + 1)]

    @property
    def inner(self) -> tuple[int, ...]:
        """The children of the root that have children."""
        return tuple(sorted({path[0] for path in self.tree.nodes if len(path) == 2}))

    def width(self, depth: int) -> int:
        """The most children at a depth."""
        return 1 + max(path[-1] for path in self.tree.nodes if len(path) == depth)

    def may_lack(self, sampling: Sampling) -> bool:
        """Whether a filter may leave a law fewer tokens than a node has children."""
        if self.tree.draw not in LIMITED:
            return False
        sampling = sampling.at(self.temperature)
        widest = 1 + max(path[-1] for path in self.tree.nodes)
        if sampling.temperature == 0 or sampling.top_p < 1 or sampling.min_p > 0:
            return widest > 1
        return 0 < sampling.top_k < widest

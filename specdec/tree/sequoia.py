"""The tree of children drawn without replacement that should have the most tokens accepted."""

from typing import Any, NamedTuple

from specdec.core.errors import UserError
from specdec.core.values import Draw
from specdec.tree.calibration_file import read_calibration, require_budget
from specdec.tree.sampled import SampledTree
from specdec.tree.sequoia_search import PositionalTrees


class Sequoia(SampledTree):
    """The best tree of up to `num_nodes` draws without replacement, none below `max_depth`.

    Best by the positional acceptance in a calibration file (`specdec-calibrate positional=true`),
    through the dynamic programme of `PositionalTrees` (Chen et al. 2024, arXiv 2402.12374). What
    was measured of a draft model serves at every depth, so that by default only `num_nodes` bounds
    the depth; heads are measured depth by depth, and the tree is no deeper. It has fewer than
    `num_nodes` nodes where more would never be accepted. The measured temperature is the one that
    it is meant for.

    `expected_accepted` is the number of accepted tokens of a step, the verifier's own excluded,
    over all positions of the measured text and as if acceptance at one depth said nothing about
    the next.

    Args:
        path: of a file that `specdec-calibrate positional=true` wrote.
        num_nodes: draft tokens of the tree, at most.
        max_depth: of the deepest; None: what the file or `num_nodes` allows.
        min_confidence: drafting ends before a token that the draft gives less probability.

    Raises:
        UserError: the file is missing or damaged or holds no positional acceptance, or `max_depth`
            is deeper than was measured.
    """

    def __init__(
        self,
        path: str,
        num_nodes: int = 16,
        max_depth: int | None = None,
        min_confidence: float = 0.0,
    ):
        require_budget(num_nodes, max_depth)
        measured = read_positional(path)
        deepest = num_nodes if measured.all_depths else len(measured.acceptance)
        if max_depth is not None and max_depth > deepest and not measured.all_depths:
            raise UserError(f"max_depth={max_depth}: path={path!r} was measured to depth {deepest}")
        trees = PositionalTrees(measured.to(min(max_depth or deepest, deepest)), num_nodes)
        nodes = trees.nodes(num_nodes)
        if not nodes:
            raise UserError(f"path={path!r}: no drawn child was ever accepted there")
        super().__init__(nodes, Draw.WITHOUT_REPLACEMENT, min_confidence)
        self.expected_accepted = trees.expected_accepted(num_nodes)


class Measured(NamedTuple):
    """Positional acceptance as a calibration file has it."""

    acceptance: list[list[float]]  # [D][K]
    all_depths: bool  # the only row is that of every depth

    def to(self, depth: int) -> list[list[float]]:
        """Return the rows of the first `depth` depths."""
        return self.acceptance * depth if self.all_depths else self.acceptance[:depth]


def read_positional(path: str) -> Measured:
    """Read the positional acceptance from a calibration file.

    Raises:
        UserError: there is no such file, or none was measured for it.
    """
    found = read_calibration(path, _extract)
    if found is None:
        raise UserError(
            f"path={path!r}: holds no positional acceptance;"
            " specdec-calibrate positional=true measures it"
        )
    good = bool(found.acceptance) and (len(found.acceptance) == 1 or not found.all_depths)
    if not good or not all(map(_are_probabilities, found.acceptance)):
        raise UserError(
            f"path={path!r}: its positional acceptance is no list of rows of probabilities"
        )
    return found


def _extract(rows: Any) -> Measured | None:
    if "positional" not in rows and "joint" in rows:
        return None
    found = rows["positional"]
    return Measured([list(row) for row in found["acceptance"]], bool(found["all_depths"]))


def _are_probabilities(row: list[Any]) -> bool:
    # Their sum may be a little above 1: they are estimates.
    return bool(row) and all(isinstance(p, int | float) and 0 <= p <= 1 for p in row)

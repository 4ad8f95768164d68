"""The tree of the rank paths that held most often when `specdec-calibrate` looked."""

from specdec.core.errors import UserError, require
from specdec.tree.calibration_file import read_calibration, require_budget
from specdec.tree.fixed import Path
from specdec.tree.sparse import Sparse

ESTIMATES = ("joint", "product")


class Calibrated(Sparse):
    """The best `num_nodes` paths of a calibration file, none longer than `max_depth`.

    `estimate` says by which frequency they are the best: that of the whole path (`joint`), which
    gives the best tree of this size for the text that was measured; or the product of each rank's
    own frequency (`product`), Medusa's method.

    Args:
        path: of a file that `specdec-calibrate` wrote.
        num_nodes: draft tokens of the tree.
        estimate: `joint` or `product`.
        max_depth: of the deepest path; None: as deep as the file.
        min_confidence: drafting ends before a token that the draft gives less probability.

    Raises:
        UserError: the file is missing or damaged, or has fewer paths than `num_nodes`.
    """

    def __init__(
        self,
        path: str,
        num_nodes: int = 16,
        estimate: str = "joint",
        max_depth: int | None = None,
        min_confidence: float = 0.0,
    ):
        require(estimate in ESTIMATES, "estimate", estimate, "one of " + ", ".join(ESTIMATES))
        require_budget(num_nodes, max_depth)
        paths = [p for p in read_paths(path, estimate) if max_depth is None or len(p) <= max_depth]
        if num_nodes > len(paths):
            within = "" if max_depth is None else f" of at most max_depth={max_depth} tokens"
            raise UserError(f"num_nodes={num_nodes}: path={path!r} has {len(paths)} paths{within}")
        super().__init__(paths[:num_nodes], min_confidence)


def read_paths(path: str, estimate: str) -> list[Path]:
    """Read the paths of a calibration file, the best first.

    Raises:
        UserError: there is no such file, or `specdec-calibrate` did not write it.
    """
    paths = read_calibration(path, lambda rows: [tuple(row) for row in rows[estimate]["paths"]])
    known: set[Path] = {()}
    for each in paths:
        ranks = all(isinstance(rank, int) and rank >= 0 for rank in each)
        if not (each and ranks and each[:-1] in known) or each in known:
            raise UserError(f"path={path!r}: {list(each)} in it is no path, or out of order")
        known.add(each)
    return paths

"""The part of `calibrate` that measures sampled children: `positional=true`."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from specdec.calibration.positional_acceptance import PositionalMeter, draft_pieces, head_pieces
from specdec.core.errors import UserError
from specdec.heads.base import DraftHeads
from specdec.lab.calibration.spec import CalibrationSpec
from specdec.lm.hf import HFCausalLM
from specdec.report.rank_tree import (
    POSITIONAL_CAVEAT,
    acceptance_table,
    efficiency_table,
    print_rank_tree,
    rank_tree,
)
from specdec.results.progress import Progress
from specdec.training.data.samples import Samples
from specdec.tree.fixed import Path
from specdec.tree.sequoia_search import PositionalTrees

SIZES_SHOWN = 64  # nodes of the largest tree in the table


def build_meter(
    spec: CalibrationSpec, verifier: HFCausalLM, draft: HFCausalLM | DraftHeads, depth: int
) -> PositionalMeter:
    """Say what is to be compared with what; `depth` is how many heads are."""
    verifier.require_states("verifier.path")
    if isinstance(draft, DraftHeads):
        pieces = head_pieces(draft, verifier, depth)
    else:
        draft.require_states("draft.path")
        pieces, depth = draft_pieces(draft, verifier), 1
    return PositionalMeter(
        pieces,
        depth,
        spec.sampling.build(),
        spec.proposer.temperature,
        spec.max_children,
        spec.seed,
    )


def measure_positional(
    spec: CalibrationSpec, meter: PositionalMeter, samples: Samples, num_samples: int
) -> dict[str, Any]:
    """Return what a calibration file holds of it: the means, of what, and how they were taken."""

    total = meter.nothing()
    with Progress(num_samples, "children", "sample") as bar:
        for piece in meter.along(samples, num_samples, spec.batch):
            total += piece
            bar.update(min(spec.batch, bar.left))
    if not total.num_positions:
        raise UserError(f"data.path={spec.data_path!r}: no token counts, so that none is compared")
    return {
        "acceptance": total.acceptance(),
        "all_depths": spec.drafts_alone,
        "num_positions": total.num_positions,
        "sampling": spec.sampling.options,
        "proposer_temperature": meter.temperature,
    }


def show_positional(found: dict[str, Any], num_nodes: int) -> None:
    """Print the acceptance, the tree of `num_nodes`, and what trees of other sizes would reach."""
    acceptance, all_depths = found["acceptance"], found["all_depths"]
    largest = max(SIZES_SHOWN, num_nodes)
    trees = PositionalTrees(acceptance * largest if all_depths else acceptance, largest)
    nodes = {size: trees.nodes(size) for size in range(1, largest + 1)}
    sizes = [size for size, tree in nodes.items() if len(tree) == size]  # until more bring nothing
    Console().print(acceptance_table(acceptance, all_depths))
    if not sizes:
        return
    num_nodes = min(num_nodes, sizes[-1])
    shares = _reached(nodes[num_nodes], acceptance, all_depths)
    reached = {"sequoia": [1 + trees.expected_accepted(size) for size in sizes]}
    depths = [max(map(len, nodes[size])) for size in sizes]
    print_rank_tree(
        rank_tree(nodes[num_nodes], shares, "child"),
        [efficiency_table(reached, depths, num_nodes)],
        f"{found['num_positions']} positions; the best {num_nodes} draws without replacement",
        POSITIONAL_CAVEAT,
    )


def _reached(paths: list[Path], acceptance: list[list[float]], all_depths: bool) -> list[float]:
    """Return the probability that each path is accepted; beginnings stand before their paths."""
    shares: dict[Path, float] = {(): 1.0}
    for path in paths:
        row = acceptance[0] if all_depths else acceptance[len(path) - 1]
        shares[path] = shares[path[:-1]] * row[path[-1]]
    return [shares[path] for path in paths]

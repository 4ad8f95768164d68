"""The part of `calibrate` that reads a recording: the best tree where its own steps begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path as File
from typing import Any

from specdec.calibration.best_tree import BestTree, Budget, Ranked, best_tree, budgets, ranked
from specdec.calibration.path_counts import calibration, expected_block_efficiency
from specdec.core.errors import UserError
from specdec.lab.arm import sampling_of
from specdec.lab.calibration.along_text import load_draft, load_heads
from specdec.lab.calibration.spec import DRAFT_DEPTH, CalibrationSpec
from specdec.lab.costs.suitable import costs_to_predict_by
from specdec.lab.identity import draft_of
from specdec.lab.rendered_runs import read_spec
from specdec.lm.fingerprint import fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.recording.recorded import read_recording, require_made_for
from specdec.recording.texts import mean_context
from specdec.replaying.costs import Costs
from specdec.replaying.draft_distributions import HeadDistributions, ModelDistributions
from specdec.tree.fixed import Path
from specdec.tree.sparse import Sparse

MOST_NODES = 64  # that may be worth their price


def on_recording(spec: CalibrationSpec, folder: File) -> tuple[dict[str, Any], HFCausalLM, int]:
    """Measure on a recording.

    Returns:
        What a calibration file holds, the model that read the recording, and how many nodes the
        best tree has: as many as are fastest, unless the number was given.
    """
    recording = read_recording(folder)
    verifier = spec.verifier.build()
    reader = fingerprint(verifier)
    require_made_for(recording, reader, None)
    if not spec.drafts_alone:
        drafts = HeadDistributions(load_heads(spec, verifier), verifier, depth=spec.depth)
        depth = drafts.num_depths
    else:
        draft = load_draft(spec, verifier)
        drafts, depth = ModelDistributions(draft), spec.depth or DRAFT_DEPTH
    sampling = recording.sampling_of(verifier)
    if (folder / "run.yaml").is_file():  # which knows processors of the user's own
        sampling = sampling_of(read_spec(folder, "run.yaml"), verifier)
    parts = ranked(recording.texts, drafts, depth, verifier.vocab_size, sampling)
    priced: list[Budget] = []
    if spec.costs is not None:
        costs = costs_to_predict_by(spec.costs, reader, verifier)
        priced = priced_sizes(parts, spec, costs)
    num_nodes = spec.num_nodes
    if num_nodes is None:
        num_nodes = max(1, max(priced, key=lambda each: each.throughput).num_nodes)
    best = best_tree(parts, num_nodes, spec.max_rank)
    if not best.nodes:
        raise UserError(
            f"max_rank={spec.max_rank}: no token of {spec.recording!r} has so low a rank"
        )
    found = contents(best, spec.max_nodes)
    found["budgets"] = [{**asdict(each), "throughput": each.throughput} for each in priced]
    return found, verifier, num_nodes


def priced_sizes(parts: Sequence[Ranked], spec: CalibrationSpec, costs: Costs) -> list[Budget]:
    """Say of trees of up to 64 nodes what they bring, and what they cost on the measured machine.

    Steps are priced behind the mean context of the recorded texts.

    Raises:
        UserError: nobody measured what this proposer costs.
    """
    draft = draft_of(spec.proposer)
    costs.require(draft, str(spec.costs))
    context = mean_context([text for part in parts for text in part.texts])

    def seconds_of(nodes: Sequence[Path]) -> float:
        return sum(costs.of_largest(draft, Sparse(nodes) if nodes else None, context))

    largest = best_tree(parts, min(spec.max_nodes, MOST_NODES), spec.max_rank)
    return budgets(parts, largest.nodes, seconds_of)


def contents(best: BestTree, max_nodes: int) -> dict[str, Any]:
    """Put the best tree first; what is more frequent elsewhere follows, for larger trees."""
    found = calibration(best.counts, max_nodes)
    others = [path for path in found["joint"]["paths"] if path not in set(best.nodes)]
    paths = [*best.nodes, *others][: max(max_nodes, len(best.nodes))]
    held = [best.counts.count(path) for path in paths]
    found["joint"] = {
        "paths": paths,
        "counts": held,
        "expected_block_efficiency": expected_block_efficiency(held, best.counts.num_positions),
    }
    return found

"""The part of `calibrate` that reads a recording: the best tree where its own steps begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path as File
from typing import Any

from omegaconf import DictConfig

from specdec.calibration.best_tree import BestTree, Budget, Ranked, best_tree, budgets, ranked
from specdec.calibration.path_counts import calibration, expected_block_efficiency
from specdec.core.errors import UserError
from specdec.lab.arm import sampling_of
from specdec.lab.build import build
from specdec.lab.identity import draft_of
from specdec.lab.rendered_runs import read_config
from specdec.lm.fingerprint import fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.recording.folder import read_recording, require_made_for
from specdec.replay.costs import costs_of_file
from specdec.replay.draft_distributions import DraftLaws, HeadLaws
from specdec.tree.fixed import Path
from specdec.tree.sparse import Sparse

MOST_NODES = 64  # that may be worth their price


def on_recording(config: DictConfig, depth: int | None) -> tuple[dict[str, Any], HFCausalLM]:
    """Return what a calibration file holds of a recording, and the model that read it."""
    recording = read_recording(File(config.recording))
    verifier = build(config.verifier)
    require_made_for(recording, fingerprint(verifier), None)
    if "verifier" in config.proposer:
        laws = HeadLaws(build(config.proposer, verifier=verifier).heads, verifier)
        depth = depth or laws.num_depths
    else:
        laws = DraftLaws(build(config.draft))
    assert depth is not None
    recorded = read_config(File(config.recording), "run.yaml")
    sampling = sampling_of(recorded, verifier)
    parts = ranked(recording.texts, laws, depth, verifier.vocab_size, sampling)
    num_nodes, priced = config.num_nodes, []
    if config.costs is not None:
        priced = priced_sizes(parts, config, fingerprint(verifier))
        # As many as are fastest, unless the number was told.
        num_nodes = num_nodes or max(1, max(priced, key=lambda each: each.throughput).num_nodes)
    best = best_tree(parts, num_nodes, config.max_rank)
    if not best.nodes:
        raise UserError(
            f"max_rank={config.max_rank}: no token of {config.recording!r} has so low a rank"
        )
    found = contents(best, config.max_nodes)
    found["budgets"] = [{**asdict(each), "throughput": each.throughput} for each in priced]
    config.num_nodes = num_nodes
    return found, verifier


def priced_sizes(
    parts: Sequence[Ranked], config: DictConfig, fingerprint: Mapping[str, str]
) -> list[Budget]:
    """Say of trees of up to 64 nodes what they bring, and what they cost on the measured machine.

    Raises:
        UserError: nobody measured what this proposer costs.
    """
    costs, draft = costs_of_file(config.costs, fingerprint), draft_of(config)
    costs.require(draft, config.costs)

    def seconds_of(nodes: Sequence[Path]) -> float:
        return sum(costs.of_largest(draft, Sparse(nodes) if nodes else None))

    largest = best_tree(parts, min(config.max_nodes, MOST_NODES), config.max_rank)
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

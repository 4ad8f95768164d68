"""The part of `calibrate` that reads a recording: the best tree where its own steps begin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from specdec.experiments.app import build

from specdec.core.errors import UserError

if TYPE_CHECKING:
    from specdec.lm.hf import HFCausalLM
    from specdec.replay.trees import BestTree


def on_recording(config: DictConfig, depth: int | None) -> tuple[dict[str, Any], HFCausalLM]:
    """Return what a calibration file holds of a recording, and the model that read it."""
    from specdec.lm.fingerprint import fingerprint
    from specdec.replay.laws import DraftLaws, HeadLaws
    from specdec.replay.recording import read_recording, require_made_for
    from specdec.replay.trees import best_tree, ranked

    recording = read_recording(Path(config.recording))
    verifier = build(config.verifier)
    require_made_for(recording, fingerprint(verifier), recording.sampling)
    if "verifier" in config.proposer:
        laws = HeadLaws(build(config.proposer, verifier=verifier).heads, verifier)
        depth = depth or laws.num_depths
    else:
        laws = DraftLaws(build(config.draft))
    assert depth is not None
    parts = ranked(recording.texts, laws, depth, verifier.vocab_size)
    best = best_tree(parts, config.num_nodes, config.max_rank)
    if not best.nodes:
        raise UserError(
            f"max_rank={config.max_rank}: no token of {config.recording!r} has so low a rank"
        )
    return contents(best, config.max_nodes), verifier


def contents(best: BestTree, max_nodes: int) -> dict[str, Any]:
    """Put the best tree first; what is more frequent elsewhere follows, for larger trees."""
    from specdec.tree.calibration import calibration, expected_block_efficiency

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

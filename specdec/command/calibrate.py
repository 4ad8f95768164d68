"""Measure which trees are worth growing: `python experiments/calibrate.py output=tree.json ...`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from specdec.calibration.path_counts import PathCounts, calibration
from specdec.calibration.positional_acceptance import PositionalMeter
from specdec.calibration.ranks import Ranker, draft_ranks, head_ranks, ranks_along
from specdec.command.entry import Entry
from specdec.core.errors import UserError, require, require_int
from specdec.core.jsonl import require_writable
from specdec.core.vouching import write_note
from specdec.lab.build import build
from specdec.lab.calibration.on_recording import on_recording
from specdec.lab.calibration.sampled_children import (
    build_meter,
    check_positional,
    measure_positional,
    show_positional,
)
from specdec.lab.identity import files_of
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import vocabulary_size
from specdec.proposer.tree_fit import heads_config
from specdec.report.rank_tree import (
    CAVEAT,
    RECORDED_CAVEAT,
    budget_table,
    efficiency_table,
    print_rank_tree,
    rank_tree,
)
from specdec.results.progress import Progress
from specdec.results.provenance import provenance
from specdec.training.data.samples import Samples
from specdec.training.data.text import require_readable

HEADS = ("medusa", "chained")
PROPOSERS = (*HEADS, "draft_model")
DRAFT_DEPTH = 4  # where none is given: as many as there usually are heads


def task(config: DictConfig) -> None:
    """Rank the text's tokens, count the paths, write the file, print the trees."""
    check_options(config)
    output = Path(config.output)
    require_writable(output)
    if config.recording is None:
        found, reader = along_text(config)
    else:
        depth = config.depth or (None if proposer_name() in HEADS else DRAFT_DEPTH)
        found, reader = on_recording(config, depth)
    facts = provenance(reader.device, config.dtype, reader.attention)
    told = {**origin(config), "files": contents(config)}
    write_note(output, {**told, **found, "provenance": facts})
    show(found, config)
    grown = "tree=calibrated"
    if "positional" in found:
        show_positional(found["positional"], config)
        grown += " or tree=sequoia"
    print(f"written: {output}; grow it with {grown} tree.path={output}")


def along_text(config: DictConfig) -> tuple[dict[str, Any], HFCausalLM]:
    """Return what a calibration file holds of a text, and the model that read it."""
    parts = build_parts(config)
    samples, num_samples = read_samples(config, parts.max_length)
    counts = PathCounts(measure(config, parts.ranker, samples, num_samples), config.max_rank)
    if not counts.num_positions:
        raise UserError(
            f"data.path={config.data.path!r}: {counts.depth} counted tokens stand nowhere in a row"
        )
    found = calibration(counts, config.max_nodes)
    if not found["joint"]["paths"]:
        raise UserError(
            f"max_rank={config.max_rank}: no token of {config.data.path!r} has so low a rank"
        )
    if parts.meter is not None:
        found["positional"] = measure_positional(config, parts.meter, samples, num_samples)
    return found, parts.reader


def check_options(config: DictConfig) -> None:
    """Refuse what is wrong before a model is loaded."""
    recording = config.recording
    if OmegaConf.is_missing(config, "output"):
        raise UserError("output: missing; expected output=tree.json")
    require(
        isinstance(config.output, str) and bool(config.output), "output", config.output, "a file"
    )
    if recording is not None:
        require(isinstance(recording, str), "recording", recording, "a folder of specdec-record")
        require(not config.positional, "positional", True, "false with a recording")
    elif config.data.path is None:
        raise UserError("data.path: missing; expected data.path=FILE, or recording=DIR")
    else:
        good = isinstance(config.data.path, str) and bool(config.data.path)
        require(good, "data.path", config.data.path, "a file")
    chosen = proposer_name()
    require(chosen in PROPOSERS, "proposer", chosen, "one of " + ", ".join(PROPOSERS))
    for name, least in (("max_rank", 0), ("max_nodes", 1), ("batch", 1)):
        require_int(name, config[name], least)
    check_num_nodes(config)
    for name, value in (("depth", config.depth), ("data.limit", config.data.limit)):
        if value is not None:
            require_int(name, value, 1)
    require_int("data.max_length", config.data.max_length, 3)
    require_int("seed", config.seed, 0)
    require(not Path(config.output).is_dir(), "output", config.output, "a file, not a folder")
    check_positional(config)
    if recording is None:
        require_readable(build(config.reading).source(config.data.path, "data.path"))
    if chosen in HEADS:
        require_depth(config.depth, heads_config(config.proposer.path).get("num_heads"))


def check_num_nodes(config: DictConfig) -> None:
    """Refuse a tree that is larger than the file, or whose size nothing tells."""
    costs, number = config.costs, config.num_nodes
    require(costs is None or isinstance(costs, str), "costs", costs, "a file of specdec-costs")
    if costs is not None:
        require(config.recording is not None, "costs", costs, "a recording, too, recording=DIR")
    if number is None:
        require(costs is not None, "num_nodes", number, "a number, or costs=FILE that tells it")
        return
    require_int("num_nodes", number, 1)
    fits = number <= config.max_nodes
    require(fits, "num_nodes", number, f"at most max_nodes={config.max_nodes}")


def require_depth(depth: int | None, num_heads: int | None) -> None:
    """Refuse to look further ahead than there are heads."""
    if depth is not None and num_heads is not None and depth > num_heads:
        raise UserError(f"depth={depth}: there are {num_heads} heads")


def proposer_name() -> str:
    """Return what was chosen by `proposer=`."""
    return HydraConfig.get().runtime.choices["proposer"]


@dataclass(frozen=True)
class Parts:
    """What is measured with, loaded."""

    reader: HFCausalLM  # the model that the ranks are read with
    max_length: int  # tokens that all models can read
    ranker: Ranker
    meter: PositionalMeter | None  # of sampled children, if they are asked for


def build_parts(config: DictConfig) -> Parts:
    """Load the models that read the text, and say how its tokens are ranked."""
    if proposer_name() in HEADS:
        verifier = build(config.verifier)
        heads = build(config.proposer, verifier=verifier).heads
        require_depth(config.depth, heads.num_heads)
        depth = config.depth or heads.num_heads
        meter = build_meter(config, verifier, heads, depth) if config.positional else None
        ranker = partial(head_ranks, heads, verifier, depth)
        return Parts(verifier, verifier.max_length, ranker, meter)
    draft = build(config.draft)
    vocab_size = vocabulary_size(Checkpoint.of(config.verifier))
    ranker = partial(draft_ranks, draft, vocab_size, config.depth or DRAFT_DEPTH)
    if not config.positional:
        return Parts(draft, draft.max_length, ranker, None)
    verifier = build(config.verifier)
    meter = build_meter(config, verifier, draft, depth=1)
    return Parts(draft, min(draft.max_length, verifier.max_length), ranker, meter)


def read_samples(config: DictConfig, max_length: int) -> tuple[Samples, int]:
    """Read the text, and say how many samples of it are wanted."""
    # The verifier's, whoever drafts: its chat template, and its padding, which it may have written.
    verifier = Checkpoint.of(config.verifier)
    length = min(config.data.max_length, max_length)
    samples = Samples.read(
        config.data.path,
        verifier.tokenizer,
        length,
        config.seed,
        vocab_size=vocabulary_size(verifier),
        reading=build(config.reading),
    )
    for note in samples.notes():
        print(note)
    return samples, min(config.data.limit or len(samples), len(samples))


def measure(
    config: DictConfig, ranker: Ranker, samples: Samples, num_samples: int
) -> Tensor:  # [S, D]
    """Rank the tokens of all samples, or of the first `data.limit` in random order."""
    pieces: list[Tensor] = []
    with Progress(num_samples, "rank", "sample") as bar:
        for piece in ranks_along(samples, ranker, num_samples, config.batch, config.max_rank):
            pieces.append(piece)
            bar.update(min(config.batch, bar.left))
    return torch.cat(pieces)


def origin(config: DictConfig) -> dict[str, Any]:
    """Say what was measured, on what."""
    return {
        "proposer": proposer_name(),
        "proposer_path": config.proposer.get("path"),
        "draft_path": config.draft.path if proposer_name() not in HEADS else None,
        "verifier_path": config.verifier.path,
        "data_path": config.data.path,
        "recording": config.recording,
    }


def contents(config: DictConfig) -> dict[str, str]:
    """Return digests of what was measured with: where it lies may change."""
    models = ["verifier", "proposer" if proposer_name() in HEADS else "draft"]
    names = [f"{node}.{name}" for node in models for name in ("path", "revision")]
    return files_of({name: OmegaConf.select(config, name) for name in names})


def show(found: dict[str, Any], config: DictConfig) -> None:
    """Print the tree of `num_nodes`, and what trees of other sizes would reach."""
    joint = found["joint"]
    num_nodes = min(config.num_nodes, len(joint["paths"]))
    shares = [count / found["num_positions"] for count in joint["counts"]]
    tree = rank_tree(joint["paths"][:num_nodes], shares[:num_nodes])
    reached = {name: found[name]["expected_block_efficiency"] for name in ("joint", "product")}
    depths = list(accumulate(map(len, joint["paths"]), max))
    read, where = config.data.path, f"{found['num_positions']} positions"
    caveat = CAVEAT
    if config.recording is not None:
        read, where = config.recording, f"{found['num_positions']:.1f} expected steps"
        caveat = RECORDED_CAVEAT
    title = f"{read}: {where}; the best {num_nodes} nodes"
    tables = [efficiency_table(reached, depths, num_nodes)]
    if found.get("budgets"):
        tables.append(budget_table(found["budgets"], num_nodes))
    print_rank_tree(tree, tables, title, caveat)


ENTRY = Entry(task)

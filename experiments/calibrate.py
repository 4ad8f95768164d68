"""Measure which trees are worth growing: `python experiments/calibrate.py output=tree.json ...`."""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from specdec.experiments.app import build, run

from specdec.core.errors import UserError, require, require_int

if TYPE_CHECKING:
    from torch import Tensor

    from specdec.lm.hf import HFCausalLM
    from specdec.replay.ranks import Ranker

HEADS = ("medusa", "chained")
PROPOSERS = (*HEADS, "draft_model")
DRAFT_DEPTH = 4  # where none is given: as many as there usually are heads


def task(config: DictConfig) -> None:
    """Rank the text's tokens, count the paths, write the file, print the tree."""
    check_options(config)
    # Here and not above, because torch takes seconds to import and --help should not wait.
    from specdec.core.jsonl import write_json
    from specdec.report.provenance import provenance
    from specdec.tree.calibration import PathCounts, calibration

    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    model, ranker = build_ranker(config)
    counts = PathCounts(measure(config, model, ranker), config.max_rank)
    if not counts.num_positions:
        raise UserError(
            f"data.path={config.data.path!r}: {counts.depth} counted tokens stand nowhere in a row"
        )
    found = calibration(counts, config.max_nodes)
    if not found["joint"]["paths"]:
        raise UserError(
            f"max_rank={config.max_rank}: no token of {config.data.path!r} has so low a rank"
        )
    facts = provenance(model.device, config.dtype, model.attention)
    write_json(output, {**origin(config), **found, "provenance": facts})
    show(found, config)
    print(f"written: {output}; grow it with tree=calibrated tree.path={output}")


def check_options(config: DictConfig) -> None:
    """Refuse what is wrong before a model is loaded."""
    for node, name, value in ((config.data, "path", "FILE"), (config, "output", "tree.json")):
        if OmegaConf.is_missing(node, name):
            option = "data.path" if name == "path" else name
            raise UserError(f"{option}: missing; expected {option}={value}")
    chosen = proposer_name()
    require(chosen in PROPOSERS, "proposer", chosen, "one of " + ", ".join(PROPOSERS))
    for name, least in (("max_rank", 0), ("max_nodes", 1), ("num_nodes", 1), ("batch", 1)):
        require_int(name, config[name], least)
    fits = config.num_nodes <= config.max_nodes
    require(fits, "num_nodes", config.num_nodes, f"at most max_nodes={config.max_nodes}")
    for name, value in (("depth", config.depth), ("data.limit", config.data.limit)):
        if value is not None:
            require_int(name, value, 1)
    require_int("data.max_length", config.data.max_length, 3)
    require_int("seed", config.seed, 0)
    require(not Path(config.output).is_dir(), "output", config.output, "a file, not a folder")
    from specdec.proposer.fit import heads_config
    from specdec.training.data.text import read_documents

    read_documents(config.data.path)
    if chosen in HEADS:
        require_depth(config.depth, heads_config(config.proposer.path).get("num_heads"))


def require_depth(depth: int | None, num_heads: int | None) -> None:
    """Refuse to look further ahead than there are heads."""
    if depth is not None and num_heads is not None and depth > num_heads:
        raise UserError(f"depth={depth}: there are {num_heads} heads")


def proposer_name() -> str:
    """Return what was chosen by `proposer=`."""
    return HydraConfig.get().runtime.choices["proposer"]


def build_ranker(config: DictConfig) -> tuple[HFCausalLM, Ranker]:
    """Load the model that reads the text, and say how its tokens are ranked."""
    from specdec.lm.load import vocabulary_size
    from specdec.replay.ranks import draft_ranks, head_ranks

    if proposer_name() in HEADS:
        verifier = build(config.verifier)
        heads = build(config.proposer, verifier=verifier).heads
        require_depth(config.depth, heads.num_heads)
        return verifier, partial(head_ranks, heads, verifier, config.depth or heads.num_heads)
    draft = build(config.draft)
    vocab_size = vocabulary_size(config.verifier.path)
    return draft, partial(draft_ranks, draft, vocab_size, config.depth or DRAFT_DEPTH)


def measure(config: DictConfig, model: HFCausalLM, ranker: Ranker) -> Tensor:  # [S, D]
    """Rank the tokens of all samples, or of the first `data.limit` in random order."""
    import torch
    from tqdm import tqdm

    from specdec.lm.load import vocabulary
    from specdec.replay.ranks import ranks_along
    from specdec.training.data.samples import Samples

    # The verifier's, whoever drafts: its chat template, and its padding, which it may have written.
    tokenizer, vocab_size = vocabulary(config.verifier.path)
    length = min(config.data.max_length, model.max_length)
    samples = Samples(config.data.path, tokenizer, length, config.seed, vocab_size=vocab_size)
    num_samples = min(config.data.limit or len(samples.rows), len(samples.rows))
    pieces: list[Tensor] = []
    with tqdm(total=num_samples, desc="rank", unit="sample", disable=None) as bar:
        for piece in ranks_along(samples, ranker, num_samples, config.batch, config.max_rank):
            pieces.append(piece)
            bar.update(min(config.batch, num_samples - bar.n))
    return torch.cat(pieces)


def origin(config: DictConfig) -> dict[str, Any]:
    """Say what was measured, on what."""
    return {
        "proposer": proposer_name(),
        "proposer_path": config.proposer.get("path"),
        "draft_path": config.draft.path if proposer_name() not in HEADS else None,
        "verifier_path": config.verifier.path,
        "data_path": config.data.path,
    }


def show(found: dict[str, Any], config: DictConfig) -> None:
    """Print the tree of `num_nodes`, and what trees of other sizes would reach."""
    from specdec.report.rank_tree import efficiency_table, print_rank_tree, rank_tree

    joint = found["joint"]
    num_nodes = min(config.num_nodes, len(joint["paths"]))
    shares = [count / found["num_positions"] for count in joint["counts"]]
    tree = rank_tree(joint["paths"][:num_nodes], shares[:num_nodes])
    reached = {name: found[name]["expected_block_efficiency"] for name in ("joint", "product")}
    depths = list(accumulate(map(len, joint["paths"]), max))
    title = f"{config.data.path}: {found['num_positions']} positions; the best {num_nodes} nodes"
    print_rank_tree(tree, efficiency_table(reached, depths, num_nodes), title)


def main() -> None:
    """Console script `specdec-calibrate`."""
    run(task, "calibrate")


if __name__ == "__main__":
    main()

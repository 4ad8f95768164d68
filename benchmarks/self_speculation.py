"""A verifier that drafts with its own layers beside a draft model, at equal drafting time.

    python benchmarks/self_speculation.py path=outputs/exit            # an exit of train=exit
    python benchmarks/self_speculation.py path=outputs/exit prompts=40 gammas=[1,2,4,6]

Arms decode the same prompts in turns, in one process. The drafting time of a step is all that it
takes beyond a plain step: what an exit spends on the first layers it saves when it verifies. Each
arm is set beside the draft model's chain whose steps take the most similar time. Intervals are of a
bootstrap over prompts.
"""

import sys
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

import specdec as sd
from specdec.core.protocols import Proposer
from specdec.lm.hf import HFCausalLM
from specdec.proposer.early_exit import EarlyExit
from specdec.proposer.layer_skip import LayerSkip

DEFAULTS = {
    "verifier": "zoo:verifier",
    "draft": "zoo:draft",
    "path": "???",  # a folder that train=exit wrote
    "skipped_layers": [2, 4, 6],
    "gammas": [1, 2, 4],
    "prompts": 12,
    "max_new_tokens": 64,
    "temperature": 1.0,
    "seed": 0,
}


def arms_of(options: DictConfig, verifier: HFCausalLM) -> Mapping[str, Proposer]:
    """Return a plain arm, and for each length a chain of each kind."""
    draft = sd.load(options.draft, vocabulary_of=options.verifier)
    found: dict[str, Proposer] = {"none": sd.NoProposer()}
    for gamma in options.gammas:
        chain = sd.Chain(gamma)
        trained = EarlyExit.load(verifier, chain, options.path)
        found |= {
            f"draft_model {gamma}": sd.DraftModel(draft, chain),
            f"exit {gamma}": trained,
            f"untrained exit {gamma}": EarlyExit(verifier, chain, trained.exit_layer),
            f"layer_skip {gamma}": LayerSkip(verifier, chain, list(options.skipped_layers)),
        }
    return found


def nearest(costs: Mapping[str, float], name: str) -> str:
    """Return the chain of the draft model whose steps take the most similar time."""
    drafts = [each for each in costs if each.startswith("draft_model")]
    return min(drafts, key=lambda each: abs(costs[each] - costs[name]))


def said(row: Any, name: str) -> str:
    """Write a number of the table with its interval, which few prompts have none of."""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return f"{row[name]:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def main(arguments: list[str]) -> None:
    """Compare, and print a table."""
    options = OmegaConf.merge(OmegaConf.create(DEFAULTS), OmegaConf.from_dotlist(arguments))
    assert isinstance(options, DictConfig)
    verifier = sd.load(options.verifier)
    found = sd.compare(
        verifier,
        arms_of(options, verifier),
        sd.load_prompts("zoo:prompts")[: options.prompts],
        sampling=sd.Sampling(temperature=options.temperature),
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        reference="none",
    ).table()
    rows: dict[str, Any] = found.to_dict("index")
    costs = {name: float(row["step_cost"]) for name, row in rows.items() if name != "none"}
    table = Table("arm", "tau", "step cost", "speedup", "at equal time", "its tau", "its speedup")
    for name, row in rows.items():
        if name == "none":
            continue
        own = [name, said(row, "block_efficiency"), said(row, "step_cost"), said(row, "speedup")]
        other = nearest(costs, name)
        theirs = rows[other]
        beside = [other, said(theirs, "block_efficiency"), said(theirs, "speedup")]
        table.add_row(*own, *(["", "", ""] if other == name else beside))
    Console(width=180).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Measure which trees are worth growing: `python experiments/calibrate.py output=tree.json ...`."""

from itertools import accumulate
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from specdec.command.entry import Entry
from specdec.command.options import plain, points
from specdec.core.errors import UserError
from specdec.core.jsonl import require_writable
from specdec.core.vouching import write_note
from specdec.lab.calibration.along_text import along_text
from specdec.lab.calibration.on_recording import on_recording
from specdec.lab.calibration.sampled_children import show_positional
from specdec.lab.calibration.spec import CalibrationSpec, require_file
from specdec.lab.identity import files_of
from specdec.lab.measured_on import measured_on
from specdec.report.rank_tree import (
    CAVEAT,
    RECORDED_CAVEAT,
    budget_table,
    efficiency_table,
    print_rank_tree,
    rank_tree,
)


def task(config: DictConfig) -> None:
    """Rank the text's tokens, count the paths, write the file, print the trees."""
    if OmegaConf.is_missing(config, "output"):
        raise UserError("output: missing; expected output=tree.json")
    output = require_file(config.output)
    chosen_as = HydraConfig.get().runtime.choices["proposer"]
    spec = CalibrationSpec.of(plain(config), chosen_as, points(config))
    spec.check()
    require_writable(output)
    spec.check_verifier()
    if spec.recording is None:
        found, reader = along_text(spec)
        num_nodes = spec.num_nodes or 0
    else:
        found, reader, num_nodes = on_recording(spec, Path(spec.recording))
    circumstances = measured_on(reader)
    known = {**origin(spec), "files": contents(spec)}
    write_note(output, {**known, **found, "provenance": circumstances})
    show(found, spec, num_nodes)
    grown = "tree=calibrated"
    if "positional" in found:
        show_positional(found["positional"], num_nodes)
        grown += " or tree=sequoia"
    print(f"written: {output}; grow it with {grown} tree.path={output}")


def origin(spec: CalibrationSpec) -> dict[str, Any]:
    """Say what was measured, on what."""
    return {
        "proposer": spec.proposer.name,
        "proposer_path": spec.proposer.path if spec.draft is None else None,
        "draft_path": None if spec.draft is None else spec.draft.path,
        "verifier_path": spec.verifier.path,
        "data_path": spec.data_path,
        "recording": spec.recording,
    }


def contents(spec: CalibrationSpec) -> dict[str, str]:
    """Return digests of what was measured with: where it lies may change."""
    drafts = {"proposer": spec.proposer} if spec.draft is None else {"draft": spec.draft}
    parts = {"verifier": spec.verifier, **drafts}
    names = ("path", "revision")
    return files_of(
        {f"{at}.{name}": part.get(name) for at, part in parts.items() for name in names}
    )


def show(found: dict[str, Any], spec: CalibrationSpec, num_nodes: int) -> None:
    """Print the tree of `num_nodes`, and what trees of other sizes would reach."""
    joint = found["joint"]
    num_nodes = min(num_nodes, len(joint["paths"]))
    shares = [count / found["num_positions"] for count in joint["counts"]]
    tree = rank_tree(joint["paths"][:num_nodes], shares[:num_nodes])
    reached = {name: found[name]["expected_block_efficiency"] for name in ("joint", "product")}
    depths = list(accumulate(map(len, joint["paths"]), max))
    read, where = spec.data_path, f"{found['num_positions']} positions"
    caveat = CAVEAT
    if spec.recording is not None:
        read, where = spec.recording, f"{found['num_positions']:.1f} expected steps"
        caveat = RECORDED_CAVEAT
    title = f"{read}: {where}; the best {num_nodes} nodes"
    tables = [efficiency_table(reached, depths, num_nodes)]
    if found.get("budgets"):
        tables.append(budget_table(found["budgets"], num_nodes))
    print_rank_tree(tree, tables, title, caveat)


ENTRY = Entry(task)

"""Short trainings, a recording and what is replayed of it, by the command line: for `make traces`.

Heads, drafts and losses are those that have a YAML file; rules, those that are lossless. These
commands compute in float32, so that their numbers are compared as numbers.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from specdec.core.jsonl import read_jsonl
from tests.support.running import Tiny, run_in_process
from tests.support.toy_parts import Part, stems

STEPS = (
    *("max_steps=3", "trainer.logging_steps=1", "trainer.warmup_steps=1"),
    "trainer.per_device_train_batch_size=2",
)
HEADS = (
    *("data.max_length=24", "data.eval_samples=2", "evaluation.num_prompts=1"),
    "evaluation.max_new_tokens=4",
)
SMALL = {  # of kinds that are not heads
    "lm": ("train.vocab_size=300", "train.num_hidden_layers=1", "train.block_length=32"),
    "exit": HEADS,
    "draft_model": (*HEADS, "train.hidden_size=32", "train.intermediate_size=48"),
}
KIND, LOSS = "medusa", "cross_entropy"  # the defaults, with which all others are tried
LOGGED = ("loss", "eval_loss", "eval_overlap", "eval_block_efficiency")
GRID = (
    *("grid.proposer=[draft_model]", "grid.tree=[chain,dynamic,filtered,sampled,sparse]"),
    *("grid.gamma=[3]", "grid.num_nodes=[4]"),
)
CALIBRATED = ("depth=3", "max_rank=20", "max_nodes=16", "num_nodes=5")


class Counted(NamedTuple):
    """The name of a case, and numbers of it by name."""

    name: str
    numbers: dict[str, float]


class ToyCommands:
    """Runs commands in this process; what they write goes into the working directory."""

    def __init__(self, tiny: Tiny):
        self._tiny = tiny
        self._models = (f"verifier.path={tiny.verifier}", f"draft.path={tiny.draft}")

    def cases(self) -> Iterator[Counted]:
        """Train, record, replay, calibrate."""
        for kind, loss in self._trainings():
            yield self._trained(kind, loss)
        options = self._tiny.options("recording", "sampling.temperature=0.5", "top_k=4")
        _run("record", *options)
        yield from self._replayed()
        yield self._calibrated()
        yield self._positional()

    def _trainings(self) -> list[tuple[str, str]]:
        others = [(kind, LOSS) for kind in stems("train") if kind != KIND]
        return [*((KIND, loss) for loss in stems("loss")), *others]

    def _trained(self, kind: str, loss: str) -> Counted:
        data = (f"data.path={self._tiny.text}", f"data.held_out_path={self._tiny.text}")
        chosen = [f"train={kind}", *([] if loss == LOSS else [f"loss={loss}"])]
        small = (*STEPS, *SMALL.get(kind, HEADS))
        verifier = self._models[:1] if kind != "lm" else ()
        _run("train", *chosen, *data, *small, *verifier, f"output={kind}_{loss}")
        numbers: dict[str, float] = {}
        for _, row in read_jsonl(Path(f"{kind}_{loss}/metrics.jsonl")):
            numbers |= {f"{key}_{row['step']}": row[key] for key in LOGGED if key in row}
        return Counted(f"train {kind} {loss}", numbers)

    def _replayed(self) -> Iterator[Counted]:
        """Replay the grid, and arms of the other proposers."""
        lossless = [
            name for name in stems("verification") if Part("verification", name).kind.lossless_for
        ]
        arms = ["proposer=none", "proposer=ngram", "proposer=ngram verification=match"]
        for name in stems("proposer"):
            if Path(f"{name}_{LOSS}").exists() and hasattr(Part("proposer", name).kind, "kind"):
                heads = f"proposer={name} proposer.path={name}_{LOSS} verification="
                arms += [f"{heads}block tree=chain", f"{heads}rejection tree=sparse"]
        options = (
            f"grid.verification=[{','.join(lossless)}]",
            f"arms=[{','.join(repr(arm) for arm in arms)}]",
            f"options=['{self._models[1]}']",
        )
        _run("replay", "recording=recording", "output=replayed", *GRID, *options)
        table: Any = pd.read_csv("replayed/summary.csv")
        for row in table.sort_values("arm").to_dict("records"):
            yield Counted(f"replay {row['arm']}", _measured(row))

    def _calibrated(self) -> Counted:
        """Choose a tree by the steps that are expected along the recording."""
        _run("calibrate", *self._models, "recording=recording", "output=tree.json", *CALIBRATED)
        found = json.loads(Path("tree.json").read_text(encoding="utf-8"))["joint"]
        return Counted("calibrate recording", _listed(found["expected_block_efficiency"]))

    def _positional(self) -> Counted:
        options = (f"data.path={self._tiny.text}", "positional=true", "sampling.temperature=1")
        _run("calibrate", *self._models, *options, "output=positional.json", *CALIBRATED)
        found = json.loads(Path("positional.json").read_text(encoding="utf-8"))["positional"]
        return Counted("calibrate positional", _listed(found["acceptance"][0]))


def _run(entry_point: str, *options: str) -> None:
    ended = run_in_process(entry_point, *options)
    assert ended.status == 0, ended.err


def _measured(row: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a row of the table that say how much was accepted."""
    names = [name for name in row if name.startswith("reached_depth") and not name.endswith("_n")]
    known = {name: row[name] for name in ("block_efficiency", *names)}
    return {name: value for name, value in known.items() if not pd.isna(value)}


def _listed(values: Sequence[float]) -> dict[str, float]:
    return {str(number): value for number, value in enumerate(values[:8])}

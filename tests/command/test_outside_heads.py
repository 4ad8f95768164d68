"""Heads of a kind from outside are trained in a sweep, calibrated and replayed, as ours are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from tests.support.complaints import assert_one_line
from tests.support.documents import EXTENDING, titled
from tests.support.importing import forget_modules

if TYPE_CHECKING:
    from tests.support.running import CommandLine, Ended, Tiny

pytestmark = [
    pytest.mark.whole,
    pytest.mark.thorough,
    pytest.mark.usefixtures("fresh_accelerator", "package"),
]

PACKAGE = "outside_heads"  # by no name that another test has imported
FILES = ("mylab/heads.py", "conf/proposer/linear.yaml", "conf/train/linear.yaml")
OWN = "--config-dir=conf"
POSITIONAL = ("positional=true", "sampling.temperature=1", "max_children=3")


@pytest.fixture
def package(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the heads of docs/extending.md into a package that can be imported."""
    pages = titled(EXTENDING)
    for name in FILES:
        file = Path(name.replace("mylab", PACKAGE))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(pages[name].replace("mylab", PACKAGE), encoding="utf-8")
    monkeypatch.syspath_prepend(str(empty_folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def train(cli: CommandLine, tiny: Tiny, *more: str) -> Ended:
    """Train linear heads for a step, unless `more` has it otherwise."""
    return cli(
        *("train", OWN, "train=linear", f"verifier.path={tiny.verifier}", f"data.path={tiny.text}"),
        *(f"data.held_out_path={tiny.text}", "data.max_length=16", "tree.gamma=2", "max_steps=1"),
        *("trainer.per_device_train_batch_size=2", "evaluation.num_prompts=1"),
        *("evaluation.max_new_tokens=4", "output=heads", *more),
    )


@pytest.fixture
def heads(cli: CommandLine, tiny: Tiny) -> tuple[str, ...]:
    """Return the options that draft with heads that were just trained."""
    ended = train(cli, tiny)
    assert ended.status == 0, ended.err
    return (OWN, "proposer=linear", "proposer.path=heads")


def edit(file: str) -> None:
    """Change a file, and forget what was imported, as a new process would not have it."""
    Path(file).write_text(Path(file).read_text(encoding="utf-8") + "\n# Changed.\n")
    forget_modules(Path.cwd())


def table(folder: str) -> Any:  # pandas' own types know no truth of a cell
    return pd.read_csv(Path(folder) / "summary.csv")


def test_a_sweep_trains_them_and_decodes_with_them(cli: CommandLine, tiny: Tiny) -> None:
    decode = f"decode=['prompts.path={tiny.prompts}','max_new_tokens=8']"
    command = ("-m", "output=sweep", decode, "max_steps=1,2", "train.bias=true")
    ended = train(cli, tiny, *command)
    assert ended.status == 0, ended.err
    assert list(table("sweep")["arm"]) == ["linear, tokens=30", "linear, tokens=60"]
    assert len(list(Path("sweep").glob("*/trained/model.safetensors"))) == 2
    assert "2 complete, 0 to run" in train(cli, tiny, *command).out
    # Of other source they are others.
    edit(f"{PACKAGE}/heads.py")
    assert "0 complete, 2 to run" in train(cli, tiny, *command, "--dry-run").out


def test_a_sweep_refuses_what_does_not_fit_them(cli: CommandLine, tiny: Tiny) -> None:
    sweep = ("-m", "output=sweep", "decode=[]")
    assert_one_line(train(cli, tiny, *sweep, "tree.gamma=3"), ["3 levels", "2 heads"])
    assert_one_line(train(cli, tiny, *sweep, "decode=['proposer=none']"), ["decode: proposer=none"])
    assert not Path("sweep").exists()


def test_they_are_calibrated_and_grow_what_was_found(
    cli: CommandLine, tiny: Tiny, heads: tuple[str, ...]
) -> None:
    text = (f"verifier.path={tiny.verifier}", f"data.path={tiny.text}", "data.max_length=24")
    measure = ("calibrate", *heads, *text, "max_rank=299", *POSITIONAL)
    ended = cli(*measure, "output=tree.json")
    assert ended.status == 0, ended.err
    found = json.loads(Path("tree.json").read_text())
    origin = [found[name] for name in ("proposer", "proposer_path", "draft_path")]
    assert origin == ["linear", "heads", None]
    assert found["depth"] == len(found["positional"]["acceptance"]) == 2
    assert not found["positional"]["all_depths"]
    assert_one_line(cli(*measure, "output=other.json", "depth=3"), ["depth=3", "2 heads"])
    for tree, temperature in (("calibrated", 0), ("sequoia", 1)):
        grown = (f"tree={tree}", "tree.path=tree.json", "tree.num_nodes=5")
        warm = (f"sampling.temperature={temperature}", "prompts.limit=1")
        ended = cli("decode", *tiny.options(f"with_{tree}", *heads, *grown, *warm))
        assert ended.status == 0, ended.err
        assert "note:" not in ended.out, "it is used as it was measured"
        rows = Path(f"with_{tree}/traces.jsonl").read_text().splitlines()
        assert max(step["drafted"] for step in json.loads(rows[0])["steps"]) == 5


def test_a_grid_of_them_is_replayed(cli: CommandLine, tiny: Tiny, heads: tuple[str, ...]) -> None:
    """Where the text decides; of what somebody else's class samples no closed form is known."""
    ended = cli("record", *tiny.options("recording", "top_k=4"))
    assert ended.status == 0, ended.err
    replay = ("replay", OWN, "recording=recording", "grid.proposer=[linear]", "output=replayed")
    given = ("options=['proposer.path=heads','tree.max_depth=2']", "grid.verification=[match]")
    ended = cli(*replay, *given, "grid.tree=[dynamic]", "grid.num_nodes=[3,80]")
    assert ended.status == 0, ended.err
    grown = ("tree=dynamic", "tree.max_depth=2", "verification=match")
    for num_nodes in (3, 80):
        run = f"decoded/{num_nodes}"
        ended = cli("decode", *tiny.options(run, *heads, *grown, f"tree.num_nodes={num_nodes}"))
        assert ended.status == 0, ended.err
    decoded = [
        json.loads(file.read_text())["block_efficiency"]["value"]
        for file in Path("decoded").glob("*/summary.json")
    ]
    assert max(decoded) > 1
    assert sorted(table("replayed")["block_efficiency"]) == pytest.approx(sorted(decoded), abs=1e-9)
    sampled = ("options=['proposer.path=heads']", "grid.gamma=[2]")
    ended = cli(*replay, *sampled, "output=other")
    assert_one_line(ended, ["nothing to replay", "single candidates of this proposer", "decode"])

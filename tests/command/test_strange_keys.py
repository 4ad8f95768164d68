"""A proposer is what its class says, whatever its options are called.

`verifier`, `model`, `heads`, `gamma`, `tree`, `path` and `temperature` mean something of their own
here. Every command runs with it, or says in one line why it cannot.
"""

from pathlib import Path

import pytest

from tests.support.complaints import assert_one_line
from tests.support.running import CommandLine, Tiny

pytestmark = [pytest.mark.usefixtures("empty_folder"), pytest.mark.whole]

MODULE = """
from specdec.proposer.ngram import NGram

class Parrot(NGram):
    def __init__(self, verifier, model, heads, gamma, tree, path, temperature):
        assert (verifier, model, heads) == ("strict", 3, ["left", "right"]), "something was put in"
        assert (gamma, tree, path, temperature) == ([2, 1], "oak", "north", "hot")
        super().__init__(gamma[0])
"""
YAML = """
_target_: parrots.Parrot
verifier: strict
model: 3
heads: [left, right]
gamma: [2, 1]
tree: oak
path: north
temperature: hot
"""
MINE = ("--config-dir", "mine")


@pytest.fixture(autouse=True)
def parrot(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_folder / "parrots.py").write_text(MODULE)
    (empty_folder / "mine/proposer").mkdir(parents=True)
    (empty_folder / "mine/proposer/parrot.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(str(empty_folder))


@pytest.fixture
def run(cli: CommandLine, tiny: Tiny) -> str:
    """Decode with it, many tokens at a temperature; returns the folder."""
    long = ("max_new_tokens=64", "prompts.num_samples=8", "sampling.temperature=1")
    ended = cli("decode", *tiny.options("run", "proposer=parrot", *long, *MINE))
    assert ended.status == 0, ended.err
    return "run"


def test_it_is_decoded_checked_recorded_and_reported(
    cli: CommandLine, tiny: Tiny, run: str
) -> None:
    assert cli("check", f"run={run}", *MINE).status == 0
    assert cli("record", f"run={run}", "output=recording", "top_k=4", *MINE).status == 0
    assert cli("report", f"run={run}", *MINE).status == 0


def test_it_is_recorded_and_replayed(cli: CommandLine, tiny: Tiny) -> None:
    recorded = cli("record", *tiny.options("recording", "top_k=4", "proposer=parrot", *MINE))
    assert recorded.status == 0, recorded.err
    grid = ("grid.proposer=[none,parrot]", "grid.gamma=[1,2]")
    ended = cli("replay", "recording=recording", *grid, "output=replayed", "check=true", *MINE)
    assert ended.status == 0, ended.err
    assert len(list(Path("replayed").glob("*parrot*/summary.json"))) >= 1


@pytest.mark.thorough
def test_it_is_compared_and_costed(
    cli: CommandLine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = 'arms=["proposer=none","proposer=parrot"]'
    ended = cli("compare", *tiny.options("both", arms, *MINE))
    assert ended.status == 0, ended.err
    monkeypatch.setattr("specdec.lab.costs.measurement.doubts", lambda *_: [])
    models = (f"verifier.path={tiny.verifier}", f"prompts.path={tiny.prompts}")
    forwards = ("tokens=[1,2,3]", "contexts=[16]", "repeats=3", "output=costs.json")
    ended = cli("costs", *models, "proposers=[parrot]", "max_new_tokens=12", *forwards, *MINE)
    assert ended.status == 0, ended.err
    assert "parrot" in ended.out


def test_what_needs_heads_or_a_model_says_so(cli: CommandLine, tiny: Tiny) -> None:
    data = (f"verifier.path={tiny.verifier}", f"data.path={tiny.text}")
    ended = cli("calibrate", "proposer=parrot", *data, "output=tree.json", *MINE)
    assert_one_line(ended, ["proposer='parrot'", "heads or a draft model"])
    overrides = (*data, "max_steps=1,2", "decode=['proposer=parrot']", "output=trained", "-m")
    assert_one_line(cli("train", *overrides, *MINE), ["decodes with what was trained"])

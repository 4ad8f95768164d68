"""Every kind of proposer with `check`, `costs` and `calibrate`: a result, or a line why not."""

import json
import re
from pathlib import Path

import pytest

from specdec.results.run_dir import read_traces
from tests.command.test_check_entry import decode, row_of
from tests.command.test_lookup_entry import build
from tests.support.complaints import assert_one_line
from tests.support.running import CommandLine, Tiny

pytestmark = [pytest.mark.usefixtures("empty_folder"), pytest.mark.thorough]

CONFIGS = Path(__file__).parents[2] / "configs" / "proposer"
# The models here have two layers; STRANGER is a draft of another tokenizer.
PROPOSERS = {
    "ngram": [],
    "suffix": ["proposer.num_nodes=5"],
    "retrieval": ["proposer.path=store", "proposer.min_matched=1"],
    "pool": [],
    "draft_model": ["draft.path=STRANGER", "draft.vocabulary=strings"],
    "early_exit": ["proposer.exit_layer=1"],
    "layer_skip": ["proposer.skipped_layers=[1]"],
    "hybrid": [],
    "cascade": [],
}
# Heads are trained where they are tested.
ELSEWHERE = {"none", "recorded", "medusa", "chained", "eagle", "mtp", "block"}
SELF_DRAFTED = {
    "exit, block": ["early_exit", "verification=block", "sampling.top_p=0.9"],
    "exit, tree": ["early_exit", "tree=sampled", "tree.widths=[2,2]", "verification=traversal"],
    "exit, paths": ["early_exit", "tree=paths", "verification=gbv"],
    "skipped, block": ["layer_skip", "verification=block"],
    "skipped, tree": ["layer_skip", "tree=sampled", "tree.widths=[2,1]", "tree.draw=iid"],
    "skipped, ranks": ["layer_skip", "tree=sparse", "tree.paths=[[0],[1],[0,0]]"],
}


def test_every_kind_is_here() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*PROPOSERS, *ELSEWHERE}


def options_of(tiny: Tiny, name: str) -> list[str]:
    return [text.replace("STRANGER", str(tiny.stranger)) for text in PROPOSERS[name]]


@pytest.mark.parametrize("name", PROPOSERS)
def test_texts_pass_the_check(tiny: Tiny, cli: CommandLine, name: str) -> None:
    build(tiny)
    decode(cli, tiny, "run", f"proposer={name}", *options_of(tiny, name))
    assert_lossless(cli)


@pytest.mark.parametrize("name", SELF_DRAFTED)
def test_longer_texts_of_a_verifier_that_drafts_for_itself(
    tiny: Tiny, cli: CommandLine, name: str
) -> None:
    proposer, *options = SELF_DRAFTED[name]
    chosen = [f"proposer={proposer}", *options_of(tiny, proposer), *options]
    decode(cli, tiny, "run", *chosen, "max_new_tokens=100")
    assert_lossless(cli)
    steps = [step for trace in read_traces(Path("run")) for step in trace.steps]
    assert sum(step.accepted for step in steps) > len(steps) / 10


def assert_lossless(cli: CommandLine) -> None:
    ended = cli("check", "run=run")
    assert ended.status == 0, ended.err + ended.out
    assert int(row_of(ended.out, "run")[1]) > 1000


def test_costs_measures_them_or_says_why_not(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specdec.lab.costs.measurement.doubts", lambda *_: [])
    monkeypatch.setattr("specdec.lab.costs.copying.MEBIBYTES", {"cpu": 1})
    build(tiny)
    several = [" ".join([name, *options_of(tiny, name)]) for name in PROPOSERS]
    models = [f"verifier.path={tiny.verifier}", f"draft.path={tiny.draft}"]
    small = ["tokens=[1,2,3]", "contexts=[16]", "repeats=2", "widths=[2]", "max_new_tokens=12"]
    given = [f"prompts.path={tiny.prompts}", f"proposers={json.dumps(several)}"]
    ended = cli("costs", *models, *given, *small, "output=costs.json")
    assert ended.status == 0, ended.err
    found = json.loads(Path("costs.json").read_text())["drafts"].values()
    left_out = {"draft_model", "hybrid", "cascade"}
    assert {each["name"].split()[0] for each in found} == {"none", *PROPOSERS} - left_out
    lines = [line for line in ended.out.splitlines() if line.startswith("left out of ")]
    assert {line.split()[3].rstrip(":") for line in lines} == left_out
    # What goes level by level has a price for each.
    assert {e["name"].split()[0] for e in found if e["level"]} == {"early_exit", "layer_skip"}
    assert cli("record", *tiny.options("recording", "sampling.temperature=1")).status == 0
    arms = [" ".join(["proposer=" + name, *options_of(tiny, name)]) for name in PROPOSERS]
    known = ["recording=recording", "costs=costs.json", "grid.proposer=[]", "output=replayed"]
    replayed = cli("replay", *known, f"arms={json.dumps(arms)}", f"options=['{models[1]}']")
    assert replayed.status == 0, replayed.err
    arms_priced = {
        re.split("[,-]", file.parent.name)[0]  # the rest tells arms of one proposer apart
        for file in Path("replayed").glob("*/summary.json")
        if json.loads(file.read_text())["tokens_per_second"]["value"]
    }
    assert arms_priced == {"none", "ngram", "suffix", "retrieval", "pool", "early_exit"}


def test_calibrate_measures_an_exit_and_grows_its_tree(tiny: Tiny, cli: CommandLine) -> None:
    exit_ = ["proposer=early_exit", "proposer.exit_layer=1"]
    text = [f"data.path={tiny.text}", "data.max_length=24", "max_rank=299", "output=tree.json"]
    children = ["positional=true", "sampling.temperature=1", "max_children=3"]
    ended = cli("calibrate", f"verifier.path={tiny.verifier}", *exit_, *text, *children)
    assert ended.status == 0, ended.err
    found = json.loads(Path("tree.json").read_text())
    assert found["proposer"] == "early_exit"
    assert found["positional"]["all_depths"], "its layers draft at all depths alike"
    for name, size in (("calibrated", 9), ("sequoia", 7)):
        tree = [f"tree={name}", "tree.path=tree.json", f"tree.num_nodes={size}"]
        ended = cli("decode", *tiny.options(name, *exit_, *tree, "sampling.temperature=1"))
        assert ended.status == 0, ended.err
        steps = [step for trace in read_traces(Path(name)) for step in trace.steps]
        assert max(step.drafted for step in steps) == size


@pytest.mark.parametrize("name", sorted({*PROPOSERS} - {"early_exit"}))
def test_calibrate_refuses_who_grows_no_tree_of_ranks(
    tiny: Tiny, cli: CommandLine, name: str
) -> None:
    chosen = [f"proposer={name}", *options_of(tiny, name), f"verifier.path={tiny.verifier}"]
    ended = cli("calibrate", *chosen, f"data.path={tiny.text}", "output=tree.json")
    what = ["draft.vocabulary='strings'"] if name == "draft_model" else [f"proposer='{name}'"]
    assert_one_line(ended, what)

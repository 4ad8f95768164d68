"""`specdec-costs`, and what its numbers are good for: predictions, choices, sizes of trees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from specdec.lab.replay.forecast import worth_decoding
from specdec.lab.replay.ranking import Choice, best_of_each, frontier
from specdec.metrics import Estimate
from tests.support.running import CommandLine, Ended, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder", "quiet")

SMALL = ("proposers=[ngram,draft_model]", "tokens=[1,2,3,4]", "widths=[2]", "max_new_tokens=12")


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Believe whatever is measured: the machine that tests run on has other work."""
    monkeypatch.setattr("specdec.command.costs.doubts", lambda timed: [])


@pytest.mark.parametrize("rounds", [1, 2])
def test_what_cannot_be_is_measured_again_and_then_refused(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    said = iter([["verifier, chain: 2 tokens take less time than 1"]] * rounds + [[]])
    monkeypatch.setattr("specdec.command.costs.doubts", lambda timed: next(said))
    models = (f"verifier.path={tiny.verifier}", f"prompts.path={tiny.prompts}")
    small = ("proposers=[]", "tokens=[1,2,3]", "max_new_tokens=12", "output=costs.json")
    ended = cli("costs", *models, *small)
    assert "measured again, since this cannot be: verifier, chain: 2 tokens" in ended.out
    if rounds == 1:
        assert (ended.status, Path("costs.json").exists()) == (0, True)
        return
    assert (ended.status, Path("costs.json").exists()) == (2, False)
    assert ended.err == (
        "error: verifier, chain: 2 tokens take less time than 1: this cannot be; measure again on"
        " a quiet machine\n"
    )


@pytest.fixture
def measured(tiny: Tiny, cli: CommandLine) -> Ended:
    models = (f"verifier.path={tiny.verifier}", f"draft.path={tiny.draft}")
    given = (f"prompts.path={tiny.prompts}", f"options=['draft.path={tiny.draft}']")
    return cli("costs", *models, *given, "output=costs.json", *SMALL)


@pytest.fixture
def recorded(tiny: Tiny, cli: CommandLine) -> Ended:
    return cli("record", *tiny.options("recording", "top_k=4"))


def test_every_part_is_measured(measured: Ended) -> None:
    assert measured.status == 0, measured.err
    found = json.loads(Path("costs.json").read_text())
    assert {1, 2, 3, 4} <= set(found["chain"]["sizes"])
    assert {3, 4} <= set(found["tree"]["sizes"])
    names = {each["name"].split()[0] for each in found["drafts"].values()}
    assert names == {"none", "ngram", "draft_model"}
    draft = next(each for each in found["drafts"].values() if "draft_model" in each["name"])
    assert draft["level"]["drawn"]["sizes"] == draft["level"]["likeliest"]["sizes"] == [1, 2]
    assert min(found["chain"]["seconds"]) > 0
    assert found["circumstances"]["batch"] == 1
    assert "predict speed with costs=costs.json" in measured.out


def test_replay_predicts_speed(
    measured: Ended, recorded: Ended, tiny: Tiny, cli: CommandLine
) -> None:
    assert (measured.status, recorded.status) == (0, 0)
    overrides = ("recording=recording", "costs=costs.json", f"options=['draft.path={tiny.draft}']")
    grid = ("grid.proposer=[ngram,draft_model]", "grid.gamma=[1,3]", "output=replayed")
    trees = "grid.tree=[chain,sparse,dynamic]", "grid.num_nodes=[4]"
    ended = cli("replay", *overrides, *grid, *trees)
    assert ended.status == 0, ended.err
    table: Any = pd.read_csv("replayed/summary.csv").set_index("arm")
    assert len(table) == 1 + 2 + 2 + 2  # plain decoding comes by itself
    assert (table["tokens_per_second"] > 0).all()
    assert table["speedup"].drop("none").notna().all()
    assert "seconds are predicted from costs.json" in ended.out
    assert "predicted: the best configuration of each proposer" in ended.out
    page = Path("replayed/report.html").read_text()
    assert "seconds are predicted from the costs of steps" in page
    summary = json.loads(next(Path("replayed").glob("none*/summary.json")).read_text())
    costs = json.loads(Path("costs.json").read_text())
    plain = next(each for each in costs["drafts"].values() if each["name"] == "none")
    step = costs["chain"]["seconds"][0] + plain["other"]["seconds"][0]
    assert summary["tokens_per_second"]["value"] == pytest.approx(1 / step)


def test_compare_says_beforehand_what_is_worth_it(
    measured: Ended, recorded: Ended, tiny: Tiny, cli: CommandLine
) -> None:
    assert (measured.status, recorded.status) == (0, 0)
    arms = 'arms=["proposer=none","proposer=draft_model","proposer=draft_model tree=sampled"]'
    overrides = ("recording=recording", "costs=costs.json", "dry_run=true", arms)
    ended = cli("compare", *tiny.options("compared", *overrides))
    assert ended.status == 0, ended.err
    assert "worth decoding: " in ended.out
    assert "predicted speedup" in ended.out
    assert not Path("compared").exists() or not list(Path("compared").iterdir())


def test_what_was_not_measured_may_be_worth_decoding(
    recorded: Ended, tiny: Tiny, cli: CommandLine
) -> None:
    models = (f"verifier.path={tiny.verifier}", f"prompts.path={tiny.prompts}")
    assert cli("costs", *models, "output=costs.json", *SMALL, "proposers=[ngram]").status == 0
    arms = 'arms=["proposer=none","proposer=ngram","proposer=draft_model"]'
    overrides = ("recording=recording", "costs=costs.json", "dry_run=true", arms)
    ended = cli("compare", *tiny.options("compared", *overrides))
    assert ended.status == 0, ended.err
    last = ended.out.strip().splitlines()[-1]
    assert last.startswith("worth decoding: ")
    assert last.endswith("draft_model")


def test_costs_choose_the_size_of_a_tree(
    measured: Ended, recorded: Ended, tiny: Tiny, cli: CommandLine
) -> None:
    assert (measured.status, recorded.status) == (0, 0)
    models = (f"verifier.path={tiny.verifier}", f"draft.path={tiny.draft}")
    overrides = (
        "recording=recording",
        "costs=costs.json",
        "num_nodes=null",
        "depth=2",
        "max_nodes=6",
    )
    ended = cli("calibrate", *models, *overrides, "output=tree.json")
    assert ended.status == 0, ended.err
    budgets = json.loads(Path("tree.json").read_text())["budgets"]
    fastest = max(budgets, key=lambda each: each["throughput"])["num_nodes"]
    assert f"the best {max(1, fastest)} nodes" in ended.out
    assert "predicted throughput" in ended.out


@pytest.mark.parametrize(
    ("command", "more", "reason"),
    [
        ("costs", ["tokens=5"], "tokens=5: expected a list"),
        ("costs", ["output=null"], "output=None"),
        ("costs", ["rounds=0"], "rounds=0"),
        ("compare", ["costs=costs.json"], "expected recording=DIR, too"),
        ("compare", ["dry_run=true"], "expected recording=DIR"),
        ("compare", ["recording=nowhere"], "recording='nowhere'"),
        ("calibrate", ["num_nodes=null", "recording=x"], "num_nodes=None: expected a number"),
        ("calibrate", ["costs=costs.json", "data.path=x"], "expected a recording, too"),
    ],
)
def test_mistakes_are_one_line(
    command: str, more: list[str], reason: str, tiny: Tiny, cli: CommandLine
) -> None:
    given = {"costs": tiny.options(".", "output=c.json")}
    given["compare"] = tiny.options("compared")
    given["calibrate"] = [f"verifier.path={tiny.verifier}", "output=tree.json"]
    ended = cli(command, *given[command], *more)
    assert ended.status == 2, ended.out
    assert reason in ended.err
    assert ended.err.strip().count("\n") == 0


def choice(name: str, tau: float, cost: float) -> Choice:
    faster = Estimate(tau / cost, None, None, 3)
    return Choice(name, name.split()[0], tau, cost, faster)


def test_the_frontier_has_what_nothing_beats_in_both() -> None:
    cheap, dear = choice("a 1", 1.5, 1.1), choice("a 2", 2.5, 2.0)
    beaten, other = choice("b 1", 1.4, 1.2), choice("b 2", 2.0, 1.5)
    assert frontier([dear, beaten, other, cheap]) == [cheap, other, dear]
    assert best_of_each([cheap, other, dear, beaten]) == [cheap, other]


def test_what_cannot_win_is_not_worth_decoding() -> None:
    found = {
        "best": Estimate(2.0, 1.9, 2.1, 9),
        "near": Estimate(1.7, 1.6, 1.85, 9),
        "far": Estimate(1.6, 1.5, 1.7, 9),
    }
    assert worth_decoding(found) == ["best", "near"]

"""`specdec-costs`, and what its numbers are good for: predictions, choices, sizes of trees."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from specdec.lab.replay.forecast import worth_decoding
from specdec.lab.replay.ranking import Choice, best_of_each, frontier
from specdec.metrics import Estimate
from specdec.replaying.costs_file import read_costs, write_costs
from specdec.results.run_dir import read_traces
from tests.support.running import CommandLine, Ended, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder", "quiet")

FORWARDS = ("tokens=[1,2,3,4]", "contexts=[16,4096]", "repeats=3")
SMALL = ("proposers=[ngram,draft_model]", *FORWARDS, "widths=[2]", "max_new_tokens=12")


def be_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Believe whatever is measured: the machine that tests run on has other work.

    And copy a little only, however near it is.
    """
    monkeypatch.setattr("specdec.lab.costs.measurement.doubts", lambda *_: [])
    monkeypatch.setattr("specdec.lab.costs.copying.MEBIBYTES", {"cpu": 1})


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    be_quiet(monkeypatch)


@pytest.mark.parametrize("rounds", [1, 2])
def test_what_cannot_be_is_measured_again_and_then_refused(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    said = iter([["verifier, chain: 2 tokens take less time than 1"]] * rounds + [[]])
    monkeypatch.setattr("specdec.lab.costs.measurement.doubts", lambda *_: next(said))
    models = (f"verifier.path={tiny.verifier}", f"prompts.path={tiny.prompts}")
    small = ("proposers=[]", *FORWARDS, "max_new_tokens=12", "output=costs.json")
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


@pytest.fixture(scope="module")
def measurement(
    tiny: Tiny, cli: CommandLine, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Ended]:
    folder = tmp_path_factory.mktemp("measured")
    models = (f"verifier.path={tiny.verifier}", f"draft.path={tiny.draft}")
    given = (f"prompts.path={tiny.prompts}", f"options=['draft.path={tiny.draft}']")
    with pytest.MonkeyPatch.context() as patch:
        be_quiet(patch)
        patch.chdir(folder)
        return folder, cli("costs", *models, *given, "output=costs.json", *SMALL)


@pytest.fixture
def measured(measurement: tuple[Path, Ended]) -> Ended:
    """What is measured once for all tests, in `costs.json`, and what was said."""
    shutil.copytree(measurement[0], ".", dirs_exist_ok=True)
    return measurement[1]


@pytest.fixture
def recorded(tiny: Tiny, cli: CommandLine) -> Ended:
    return cli("record", *tiny.options("recording", "top_k=4"))


def test_every_part_is_measured(measured: Ended) -> None:
    assert measured.status == 0, measured.err
    found = json.loads(Path("costs.json").read_text())
    points = found["forwards"]["points"]
    shapes = [(each["branches"], each["num_tokens"], each["context"]) for each in points]
    # The tiny model reads 256 tokens: behind the longest context there is room for four.
    chains = [(False, number, context) for number in (1, 2, 3, 4) for context in (16, 252)]
    trees = [(True, number, context) for number in (3, 4) for context in (16, 252)]
    assert sorted(shapes) == sorted([*chains, *trees])
    speed = found["forwards"]["bytes_per_second"]
    for each in points:
        assert each["floor_seconds"] == each["num_bytes"] / speed
        assert each["ratio"] == each["seconds"] / each["floor_seconds"] > 0
    names = {each["name"].split()[0] for each in found["drafts"].values()}
    assert names == {"none", "ngram", "draft_model"}
    draft = next(each for each in found["drafts"].values() if "draft_model" in each["name"])
    assert draft["level"]["drawn"]["sizes"] == draft["level"]["likeliest"]["sizes"] == [1, 2]
    assert draft["growth"]["sizes"] == [16, 252]
    known = found["circumstances"]
    assert (known["batch"], known["runtime"], known["dtype"]) == (1, "eager", "float32")
    assert known["draft_runtime"] == "eager"
    assert "verifier, eager, float32, batch 1: ms of chains (times the floor)" in measured.out
    assert "growth with context: " in measured.out
    assert "growth with tokens: " in measured.out
    assert "predict speed with costs=costs.json" in measured.out


@pytest.mark.thorough
def test_files_of_other_batches_are_set_beside(
    measured: Ended, tiny: Tiny, cli: CommandLine
) -> None:
    models = (f"verifier.path={tiny.verifier}", f"prompts.path={tiny.prompts}")
    small = ("proposers=[]", *FORWARDS, "max_new_tokens=12", "output=two.json")
    ended = cli("costs", *models, *small, "batch=2", "beside=[costs.json]", plots=True)
    assert ended.status == 0, ended.err
    assert "growth with batch: " in ended.out
    for name in ("two_by_context", "two_by_tokens", "two_by_batch"):
        assert f"plots/{name}.png" in ended.out
        assert Path(f"plots/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in Path(f"plots/{name}.svg").read_text()
    assert json.loads(Path("two.json").read_text())["forwards"]["batch"] == 2
    again = cli("costs", *models, *small, "beside=[costs.json]")
    assert again.status == 2
    assert again.err.startswith("error: beside='costs.json': batch=1 again")


def test_replay_plays_a_pace_and_reports_its_regret(
    measured: Ended, recorded: Ended, tiny: Tiny, cli: CommandLine
) -> None:
    assert (measured.status, recorded.status) == (0, 0)
    arms = [
        "proposer=draft_model tree.gamma=3 pace=adaptive",
        "proposer=ngram tree.gamma=3 pace=adaptive pace.costs_path=costs.json",
        "proposer=draft_model tree=sparse pace=adaptive",
        "proposer=draft_model pace=adaptive pace.by_price=true",
    ]
    options = f"options=['draft.path={tiny.draft}']"
    given = ("recording=recording", options, f"arms={arms!r}", "grid.gamma=[1,3]")
    ended = cli("replay", *given, "costs=costs.json", "output=replayed")
    assert ended.status == 0, ended.err
    assert "left out, 1: pace=adaptive: replay knows chains that end nowhere early" in ended.out
    assert "left out, 1: pace=adaptive: with by_price=true drafts decide" in ended.out
    assert ended.out.count("regret of ") == 2
    found = [json.loads(path.read_text()) for path in Path("replayed").glob("*/summary.json")]
    lost = [each for each in found if "regret" in each]
    assert len(lost) == 2
    for each in lost:
        assert each["regret"]["value"] > -0.5
        assert Path("replayed", each["regret_to"]).is_dir()
        assert each["speedup"]["value"] > 0
    assert "regret" in Path("replayed/report.html").read_text()
    ended = cli("replay", *given, "output=without")
    assert ended.status == 0, ended.err
    assert "pace=adaptive: what steps cost decides on the next ones; expected costs=" in ended.out


def test_seconds_of_a_file_make_equal_steps(measured: Ended, tiny: Tiny, cli: CommandLine) -> None:
    assert measured.status == 0
    paced = ["proposer=draft_model", "pace=adaptive", "pace.costs_path=costs.json"]
    for folder in ("one", "two"):
        ended = cli("decode", *tiny.options(folder, "sampling.temperature=1", *paced))
        assert ended.status == 0, ended.err
    both = [read_traces(Path(folder)) for folder in ("one", "two")]
    steps = [[[(s.drafted, s.accepted) for s in t.steps] for t in traces] for traces in both]
    assert steps[0] == steps[1]
    ended = cli("decode", *tiny.options("three", "proposer=recorded", *paced[1:]))
    assert ended.status == 2
    for wrong in ("pace.costs_path=no.json", "pace.loss=7", "pace=fast"):
        ended = cli("decode", *tiny.options("four", *paced[:2], wrong))
        assert ended.status != 0
        assert len(ended.err.splitlines()) == 1, ended.err


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
    costs = read_costs(Path("costs.json"))
    plain = next(each for each in costs.drafts.values() if each.name == "none")
    # The texts lie between the two contexts that were timed, as far as these are apart.
    ends = [costs.forwards.chain.at(1, context) for context in (16, 252)]
    fastest, slowest = (plain.verify * end + plain.other.at(1) for end in ends)
    value = summary["tokens_per_second"]["value"]
    assert 1 / slowest - 1e-9 <= value <= 1 / fastest + 1e-9


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


@pytest.mark.thorough
def test_costs_of_another_runtime_are_refused_or_said(
    measured: Ended, recorded: Ended, tiny: Tiny, cli: CommandLine
) -> None:
    """What is decoded next is refused; where nothing is, a line says what is predicted."""
    assert (measured.status, recorded.status) == (0, 0)
    known = read_costs(Path("costs.json"))
    other = {**known.circumstances, "runtime": "compiled", "num_threads": 99}
    write_costs(replace(known, circumstances=other), Path("other.json"))
    overrides = ("recording=recording", "costs=other.json")
    said = "costs='other.json': measured with runtime=compiled, num_threads=99, and this is"
    arms = ("dry_run=true", 'arms=["proposer=none"]')
    refused = cli("compare", *tiny.options("compared", *overrides, *arms))
    assert (refused.status, refused.out) == (2, "")
    assert refused.err.startswith(f"error: {said} runtime=eager")
    assert refused.err.endswith("measure anew with specdec-costs\n")
    own = {**known.circumstances, "draft_runtime": "compiled"}
    write_costs(replace(known, circumstances=own), Path("draft.json"))
    with_draft = ("recording=recording", "costs=draft.json", "dry_run=true")
    drafting = 'arms=["proposer=none","proposer=draft_model"]'
    refused = cli("compare", *tiny.options("compared", *with_draft, drafting))
    assert "measured with draft_runtime=compiled, and this is draft_runtime=eager" in refused.err
    assert cli("compare", *tiny.options("compared", *with_draft, arms[1])).status == 0
    replayed = cli("replay", *overrides, "grid.proposer=[none]", "output=replayed")
    assert replayed.status == 0, replayed.err
    assert f"{said} runtime=eager" in replayed.out
    fine = cli("replay", "recording=recording", "costs=costs.json", "grid.proposer=[none]")
    assert "measured with" not in fine.out


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
        ("costs", ["repeats=0"], "repeats=0"),
        ("costs", ["tokens=[1,2]"], "expected a tree among them, of 3 at least"),
        ("costs", ["contexts=[]"], "contexts=[]: expected a list of numbers"),
        (
            "costs",
            ["tokens=[4,256]"],
            "tokens=256: expected fewer than the 256",
        ),
        ("costs", ["beside=[gone.json]"], "costs='gone.json': cannot be read"),
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

"""Learning from the command line: runs, what they keep, how they go on, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from specdec.core.trace import Trace
from specdec.online.state import read_state
from specdec.report.plots.over_time import over_time
from specdec.report.write import write_report
from specdec.results.run_dir import read_traces
from tests.online.test_learning import timeless
from tests.support.interrupting import stop_after
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

LEARNING = (
    *("proposer=draft_model", "online=distil", "online.every=1", "online.samples=1"),
    *("online.learning_rate=0.01", "online.save_prompts=2", "tree.gamma=2"),
)


def write_prompts(num: int) -> str:
    rows = [
        {"id": f"p{n}", "category": "code", "prompt": f"def add(first, {n}):"} for n in range(num)
    ]
    Path("prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return "prompts.path=prompts.jsonl"


def traces_of(folder: str) -> Sequence[Trace]:
    return timeless(read_traces(Path(folder)))


def interrupted(cli: CommandLine, overrides: Sequence[str], number: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, number)
        assert cli("decode", *overrides).status == 130


@pytest.mark.parametrize("more", [(), ("online.every=2", "online.delay=1", "online.anchor=1")])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    cli: CommandLine, tiny: Tiny, more: tuple[str, ...]
) -> None:
    """Killed behind five texts: the learner was kept behind four."""
    given = (write_prompts(7), *LEARNING, *more)
    assert cli("decode", *tiny.options("whole", *given)).status == 0
    overrides = tiny.options("run", *given)
    interrupted(cli, overrides, 5)
    assert read_state(Path("run/learner.pt")).prompts == tuple((f"p{n}", 0) for n in range(4))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)  # so many are left behind the four: another would be one anew
        assert cli("decode", *overrides).status == 0
    assert traces_of("run") == traces_of("whole")
    assert read_state(Path("run/learner.pt")).learner["num_updates"] > 10
    plain = tiny.options("plain", write_prompts(7), "proposer=draft_model", "tree.gamma=2")
    assert cli("decode", *plain).status == 0
    assert [t.output_ids for t in traces_of("plain")] == [t.output_ids for t in traces_of("run")]
    assert traces_of("plain") != traces_of("run"), "nothing was learned"


@pytest.mark.parametrize("lost", ["learner", "text"])
def test_texts_without_their_learner_do_not_count(cli: CommandLine, tiny: Tiny, lost: str) -> None:
    given = (write_prompts(5), *LEARNING)
    assert cli("decode", *tiny.options("whole", *given)).status == 0
    overrides = tiny.options("run", *given)
    interrupted(cli, overrides, 4)
    if lost == "learner":
        Path("run/learner.pt").unlink()
    else:
        rows = Path("run/traces.jsonl").read_text().splitlines(keepends=True)
        Path("run/traces.jsonl").write_text("".join(rows[1:]))
    assert cli("decode", *overrides).status == 0
    assert traces_of("run") == traces_of("whole")


def test_a_run_goes_on_from_what_another_learned(cli: CommandLine, tiny: Tiny) -> None:
    given = (write_prompts(3), *LEARNING)
    assert cli("decode", *tiny.options("first", *given)).status == 0
    more = "online.path=first/learner.pt"
    assert cli("decode", *tiny.options("second", *given, more)).status == 0
    before, after = (read_state(Path(run) / "learner.pt").learner for run in ("first", "second"))
    assert after["num_updates"] > before["num_updates"] > 0
    # The same options with another state are another run.
    Path("first/learner.pt").write_bytes(Path("second/learner.pt").read_bytes())
    ended = cli("decode", *tiny.options("second", *given, more))
    assert ended.status == 2
    assert "holds a run of other options" in ended.err


def test_arms_that_load_one_draft_do_not_learn_from_each_other(
    cli: CommandLine, tiny: Tiny
) -> None:
    prompts = write_prompts(4)
    arms = 'arms=["proposer=draft_model tree.gamma=2", "{}"]'.format(" ".join(LEARNING))
    ended = cli("compare", *tiny.options("both", prompts, arms))
    assert ended.status == 0, ended.err
    alone = tiny.options("alone", prompts, "proposer=draft_model", "tree.gamma=2")
    assert cli("decode", *alone).status == 0
    learning = tiny.options("learning", prompts, *LEARNING)
    assert cli("decode", *learning).status == 0
    found = sorted(path.parent.name for path in Path("both").glob("*/traces.jsonl"))
    still, own = sorted(found, key=len)
    assert traces_of(f"both/{still}") == traces_of("alone")
    assert traces_of(f"both/{own}") == traces_of("learning")
    assert (Path("both") / own / "learner.pt").is_file()
    _, results = write_report(Path("both"))
    (plot,) = over_time(results)
    assert plot.name == "tau_over_time"
    assert len(plot.figure.axes[0].lines) == 2  # one for each arm


def test_what_cannot_learn_is_refused_before_anything_is_loaded(
    cli: CommandLine, tiny: Tiny
) -> None:
    for given, said in (
        (("proposer=ngram", "online=distil"), "online: proposer=ngram has no weights to train"),
        (("proposer=none", "online=distil"), "online: proposer=none has no weights to train"),
        (("proposer=draft_model", "loss=lk"), "loss=lk: is what a proposer learns by"),
        ((*LEARNING, "online.swap=never"), "online.swap='never': expected step or request"),
        ((*LEARNING, "online.delay=1"), "expected less than online.every=1"),
        ((*LEARNING, "loss=expected_accepted"), "expected a loss of tokens with a draft model"),
        ((*LEARNING, "online.path=nowhere"), "online.path='nowhere': expected a file"),
    ):
        ended = cli("decode", *tiny.options("run", *given))
        assert ended.status == 2
        assert said in ended.err, ended.err


def test_replay_and_costs_say_that_they_know_no_changing_weights(
    cli: CommandLine, tiny: Tiny
) -> None:
    recorded = tiny.options("recording", "sampling.temperature=1", "max_new_tokens=4")
    assert cli("record", *recorded).status == 0
    arms = [f"draft.path={tiny.draft} {' '.join(LEARNING)}", "proposer=ngram"]
    ended = cli(
        "replay",
        "recording=recording",
        "output=replayed",
        f"arms={json.dumps(arms)}",
        "grid.proposer=[none]",
    )
    assert ended.status == 0, ended.err
    assert "replay reads all texts with the same weights" in ended.out
    ended = cli("costs", "output=costs.json", "online=distil")
    assert ended.status == 2
    assert "stay as they are while steps are timed" in ended.err

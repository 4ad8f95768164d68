"""`specdec-record` and `specdec-replay` from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.running import CommandLine, Ended, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

ALL = (
    "grid.proposer=[none,ngram,draft_model]",
    "grid.tree=[chain,sparse,dynamic]",
    "grid.verification=[rejection,block]",
    "grid.gamma=[1,3]",
    "grid.num_nodes=[4]",
)


def record(cli: CommandLine, tiny: Tiny, *more: str) -> Ended:
    return cli("record", *tiny.options("recording", "sampling.temperature=1", "top_k=4", *more))


@pytest.fixture
def recording(tiny: Tiny, cli: CommandLine) -> Ended:
    return record(cli, tiny)


def replay(cli: CommandLine, tiny: Tiny, *more: str, folder: str = "replayed") -> Ended:
    given = (f"options=['draft.path={tiny.draft}']", f"output={folder}")
    return cli("replay", "recording=recording", *given, *more)


def table(folder: str = "replayed") -> Any:  # pandas' own types know no truth of a cell
    return pd.read_csv(Path(folder) / "summary.csv")


def test_a_grid_is_replayed_and_reported(recording: Ended, tiny: Tiny, cli: CommandLine) -> None:
    assert recording.status == 0, recording.err
    ended = replay(cli, tiny, *ALL)
    assert ended.status == 0, ended.err
    found = table()
    # none; n-grams of two lengths; of the draft two chains under two rules, and two trees.
    assert len(found) == 1 + 2 + 2 * 2 + 2
    assert "9 configurations on 3 texts" in ended.out
    assert "left out" in ended.out
    by_arm: Any = found.set_index("arm")["block_efficiency"]
    assert by_arm["none"] == 1.0
    assert (by_arm >= 1.0).all()
    assert Path("replayed/report.html").exists()


@pytest.mark.thorough
def test_what_is_certain_is_counted_as_decoding_counts_it(tiny: Tiny, cli: CommandLine) -> None:
    """At temperature 0 the engine writes the same text; tau must be the very same number."""
    assert record(cli, tiny, "sampling.temperature=0").status == 0
    arms = ("proposer=ngram tree.gamma=3", "proposer=draft_model tree=sparse")
    chain = "proposer=draft_model tree.gamma=2"
    quoted = ",".join(f"'{arm}'" for arm in (*arms, chain))
    assert replay(cli, tiny, "grid.proposer=[]", f"arms=[{quoted}]").status == 0
    for number, arm in enumerate((*arms, chain)):
        decoded = cli("decode", *tiny.options(f"decoded/{number}", *arm.split()))
        assert decoded.status == 0, decoded.err
    summaries = [
        json.loads(path.read_text()) for path in sorted(Path("decoded").glob("*/summary.json"))
    ]
    theirs = sorted(each["block_efficiency"]["value"] for each in summaries)
    assert sorted(table()["block_efficiency"]) == pytest.approx(theirs, abs=1e-9)


def test_a_lossless_run_is_a_recording_too(tiny: Tiny, cli: CommandLine) -> None:
    overrides = ("proposer=draft_model", "sampling.temperature=1")
    assert cli("decode", *tiny.options("run", *overrides)).status == 0
    ended = cli("record", "run=run", "output=recording", "top_k=4")
    assert ended.status == 0, ended.err
    ended = replay(cli, tiny, "grid.gamma=[2]", "grid.proposer=[draft_model]")
    assert ended.status == 0, ended.err
    assert len(table()) == 1


def test_an_interrupted_recording_goes_on(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specdec.recording import writer as module

    with monkeypatch.context() as patch:
        patch.setattr(module.RecordingWriter, "close", lambda self: None)
        assert record(cli, tiny).status == 0
    ended = replay(cli, tiny)
    assert ended.status == 2
    assert "interrupted; the same record command goes on" in ended.err
    assert record(cli, tiny).status == 0
    assert replay(cli, tiny, "grid.gamma=[1]").status == 0


def test_replayed_runs_are_not_compared_with_decoded_ones(
    recording: Ended, tiny: Tiny, cli: CommandLine
) -> None:
    assert recording.status == 0, recording.err
    assert replay(cli, tiny, "grid.gamma=[1]", "grid.proposer=[ngram]").status == 0
    overrides = ("proposer=ngram", "tree.gamma=1", "sampling.temperature=1")
    assert cli("decode", *tiny.options("replayed/decoded", *overrides)).status == 0
    ended = cli("report", "replayed")
    assert ended.status == 0, ended.err
    assert table()["setting"].nunique() == 2


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["recording=nowhere"], "recording='nowhere'"),
        (["recording=5"], "recording: expected a folder"),
        (["grid.gamma=4"], "grid.gamma=4"),
        (["grid.proposer=[]"], "nothing to replay"),
        (["grid.proposer=[draft_model]", "grid.verification=[traversal]", "grid.tree=[sparse]"],
         "nothing to replay: verification=traversal"),
        (["arms=['proposer=ngram sampling.temperature=0.5']"], "fixed by the recording"),
        (["arms=['proposer=medusa seed=3']"], "seed=3: fixed by the recording"),
        (["grid.proposer=[nothing]"], "nothing"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    recording: Ended, tiny: Tiny, cli: CommandLine, more: list[str], reason: str
) -> None:
    assert recording.status == 0, recording.err
    ended = replay(cli, tiny, *more)
    assert ended.status == 2, ended.out
    assert reason in ended.err
    assert ended.err.strip().count("\n") == 0


def test_lossy_runs_are_refused(tiny: Tiny, cli: CommandLine) -> None:
    lossy = ("verification=typical", "verification.allow_lossy=true", "proposer=draft_model")
    assert record(cli, tiny, *lossy).status == 2
    assert cli("decode", *tiny.options("run", *lossy, "sampling.temperature=1")).status == 0
    ended = cli("record", "run=run", "output=recording")
    assert ended.status == 2
    assert "not lossless" in ended.err


def test_the_engine_is_checked_against_replay(tiny: Tiny, cli: CommandLine) -> None:
    """At temperature 0 to the last digit; one configuration of each family is enough."""
    assert record(cli, tiny, "sampling.temperature=0").status == 0
    ended = replay(cli, tiny, "grid.tree=[chain,dynamic]", "grid.num_nodes=[4]", "check=true")
    assert ended.status == 0, ended.err + ended.out
    said = [line for line in ended.out.splitlines() if "by replay" in line]
    assert [line.split(":")[0] for line in said] == [
        "ngram, chain, rejection",
        "draft_model, chain, rejection",
        "draft_model, dynamic, rejection",
    ]
    assert all("difference +0.000" in line for line in said)


@pytest.mark.thorough
def test_a_proposer_with_a_broken_state_is_found(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts stay lossless, whatever the draft has read; only acceptance tells."""
    from specdec.proposer.draft_tokens import SameTokens

    rows = [{"id": f"{n}", "prompt": f"def add(first, second): {n}"} for n in range(12)]
    Path("many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ("sampling.temperature=0", "max_new_tokens=30", "prompts.path=many.jsonl")
    assert record(cli, tiny, *overrides).status == 0
    monkeypatch.setattr(SameTokens, "readable", lambda self, token_ids: [5] * len(token_ids))
    overrides = ("grid.proposer=[draft_model]", "grid.gamma=[3]", "check=true")
    ended = replay(cli, tiny, *overrides)
    assert ended.status == 1
    assert "the engine does not accept what replay expects" in ended.out


def test_the_best_tree_of_a_recording_is_worth_what_it_says(
    recording: Ended, tiny: Tiny, cli: CommandLine
) -> None:
    assert recording.status == 0, recording.err
    overrides = ("recording=recording", "num_nodes=5", "depth=3", "output=tree.json", "max_rank=20")
    models = (f"verifier.path={tiny.verifier}", f"draft.path={tiny.draft}")
    ended = cli("calibrate", *models, *overrides)
    assert ended.status == 0, ended.err
    assert "expected steps; the best 5 nodes" in ended.out
    expected = json.loads(Path("tree.json").read_text())["joint"]["expected_block_efficiency"][4]
    arm = "proposer=draft_model tree=calibrated tree.path=tree.json tree.num_nodes=5"
    assert replay(cli, tiny, "grid.proposer=[]", f"arms=['{arm}']").status == 0
    assert float(table()["block_efficiency"][0]) == pytest.approx(expected, abs=1e-6)

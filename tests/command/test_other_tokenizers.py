"""Drafts of another tokenizer from the command line: what takes them, and who says why not."""

from pathlib import Path

import pytest

from specdec.results.run_dir import read_traces
from tests.support.complaints import assert_one_line
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

COMMON, TEXT = "draft.vocabulary=intersection", "draft.vocabulary=strings"


def options(tiny: Tiny, run: str, *more: str) -> list[str]:
    return tiny.options(run, "proposer=draft_model", f"draft.path={tiny.stranger}", *more)


def refusal(cli: CommandLine, command: str, *given: str) -> str:
    ended = cli(command, *given)
    assert ended.status == 2, ended.out
    assert_one_line(ended)
    return ended.err


def test_both_ways_write_the_verifier_s_text(cli: CommandLine, tiny: Tiny) -> None:
    """Greedy, with chains and trees; and the draft as it is says what can be done about it."""
    ended = cli("decode", *tiny.options("plain", "proposer=none"))
    assert ended.status == 0, ended.err
    plain = [trace.output_ids for trace in read_traces(Path("plain"))]
    for number, how in enumerate(([COMMON], [COMMON, "tree=sparse"], [TEXT], [TEXT, "batch=3"])):
        ended = cli("decode", *options(tiny, f"run{number}", *how))
        assert ended.status == 0, ended.err
        traces = read_traces(Path(f"run{number}"))
        assert [trace.output_ids for trace in traces] == plain
        assert sum(step.drafted for trace in traces for step in trace.steps) > 0
    said = refusal(cli, "decode", *options(tiny, "never"))
    assert "unless draft.vocabulary=intersection or strings" in said


def test_what_cannot_be_is_refused_in_one_line(cli: CommandLine, tiny: Tiny) -> None:
    for given, expected in (
        (["draft.vocabulary=words"], "draft.vocabulary='words': expected one of same, inter"),
        ([TEXT, "tree=sparse"], "tree=sparse: a draft of vocabulary=strings writes one text"),
        ([COMMON, "tree=sparse", "tree.paths=[[400]]"], "rank 400, but there are "),
        ([TEXT, "verification=block"], "cannot decide on deterministic candidates"),
        ([COMMON, "draft.attention=prefix_lm"], "draft.vocabulary='intersection': the last tok"),
        ([COMMON, "online=distil"], "online=distil: a draft of another tokenizer learns nothing"),
    ):
        assert expected in refusal(cli, "decode", *options(tiny, "never", *given))


@pytest.mark.thorough
def test_check_replay_and_a_second_run(cli: CommandLine, tiny: Tiny) -> None:
    """Replay drafts along the text where that decides, and else says that it cannot."""
    given = ["prompts.path=many.jsonl", "max_new_tokens=50", "batch=30", "sampling.temperature=1"]
    line = '{{"id": "{0}", "prompt": "def add(first, second{0}):"}}\n'
    Path("many.jsonl").write_text("".join(line.format(n) for n in range(30)))
    ended = cli("decode", *options(tiny, "run", COMMON, *given))
    assert ended.status == 0, ended.err
    ended = cli("check", "run=run")
    assert ended.status == 0, ended.err
    assert "texts are not held against the draft, which reads them in other tokens" in ended.out
    assert cli("record", *tiny.options("recording", *given)).status == 0
    arms = "arms=['proposer=draft_model verification={}']"
    models = f"options=['draft.path={tiny.stranger}','{{}}']"
    for how, rule in ((TEXT, "rejection"), (COMMON, "match")):
        ended = cli("replay", "recording=recording", models.format(how), arms.format(rule))
        assert ended.status == 0, ended.err
    ended = cli("replay", "recording=recording", models.format(COMMON), arms.format("rejection"))
    assert "single candidates of this proposer cannot be replayed; decode them" in ended.out


@pytest.mark.thorough
def test_calibrate_costs_and_describe(
    cli: CommandLine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = (f"verifier.path={tiny.verifier}", f"draft.path={tiny.stranger}")
    given = (f"data.path={tiny.text}", "proposer=draft_model", "output=tree.json")
    said = refusal(cli, "calibrate", *models, *given, COMMON)
    assert "draft.vocabulary='intersection': expected same: ranks and children are meas" in said

    for how in (COMMON, TEXT):
        ended = cli(
            "explain", *models, "proposer=draft_model", how, "max_new_tokens=4", "prompt=def"
        )
        assert ended.status == 0, ended.err

    ended = cli("describe", *models, COMMON)
    assert "best_first, chain, dynamic, filtered, paths, sampled, sparse" in ended.out
    ended = cli("describe", *models, TEXT)
    assert "a draft of vocabulary=strings writes one text" in ended.out

    monkeypatch.setattr("specdec.lab.costs.measurement.doubts", lambda *_: [])
    monkeypatch.setattr("specdec.lab.costs.copying.MEBIBYTES", {"cpu": 1})
    small = ("tokens=[1,2,3,4]", "contexts=[16]", "repeats=3", "widths=[2]", "max_new_tokens=12")
    for how in (COMMON, TEXT):
        own = f"options=['draft.path={tiny.stranger}','{how}']"
        prompts = f"prompts.path={tiny.prompts}"
        ended = cli(
            "costs", models[0], own, prompts, *small, "proposers=[draft_model]", "output=costs.json"
        )
        assert ended.status == 0, ended.err
        left_out = "left out of draft_model: draft.vocabulary=strings: candidates are not"
        assert (left_out in ended.out) == (how == TEXT)

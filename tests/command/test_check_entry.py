"""`specdec-check` from the command line: lossless runs pass, planted faults are found."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from specdec.core.values import Context, Proposal
from specdec.proposer.draft_model import DraftModel
from specdec.results.run_dir import read_traces
from tests.support.complaints import assert_one_line
from tests.support.marking import thorough
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

DRAFT = ["proposer=draft_model"]
LOSSY = "verification.allow_lossy=true"


def decode(cli: CommandLine, tiny: Tiny, run: str, *options: str, num_prompts: int = 60) -> None:
    """Decode some thousand tokens at temperature 1."""
    line = '{{"id": "{0}", "prompt": "def add(first, second{0}):"}}\n'
    Path("many.jsonl").write_text("".join(line.format(n) for n in range(num_prompts)))
    given = ["prompts.path=many.jsonl", "max_new_tokens=50", "batch=30", "sampling.temperature=1"]
    ended = cli("decode", *tiny.options(run, *given, *options))
    assert ended.status == 0, ended.err


def row_of(out: str, run: str) -> list[str]:
    rows = [line.split() for line in out.splitlines()]
    (found,) = (row for row in rows if row[:1] == [run] and row[-1] in ("yes", "NO"))
    return found


@pytest.mark.parametrize(
    "options",
    [
        ["proposer=none"],
        [*DRAFT, "verification=block"],
        [
            *DRAFT,
            "tree=sampled",
            "tree.widths=[2,2]",
            "sampling.temperature=0.7",
            "sampling.top_p=0.9",
        ],
    ],
    ids=["none", "block", "without_replacement_warped"],
)
def test_a_lossless_run_passes(cli: CommandLine, tiny: Tiny, options: list[str]) -> None:
    decode(cli, tiny, "run", *options)
    ended = cli("check", "run=run")
    assert ended.status == 0, ended.err + ended.out
    name, tokens, impossible, *_, verdict = row_of(ended.out, "run")
    traces = read_traces(Path("run"))
    assert int(tokens) == sum(len(trace.output_ids) for trace in traces) > 1000
    assert (name, impossible, verdict) == ("run", "0", "yes")
    assert "lossless, as far as" in ended.out


@pytest.mark.thorough
def test_the_draft_s_order_is_that_of_the_run_s_own_draft_or_of_the_one_that_is_named(
    cli: CommandLine, tiny: Tiny
) -> None:
    decode(cli, tiny, "none", "proposer=none")
    decode(cli, tiny, "own", *DRAFT)
    columns = ["run", "tokens", "impossible", "bins", "pairs", "KS", "draft", "all", "lossless"]
    without = cli("check", "run=none")
    assert columns in [line.split() for line in without.out.splitlines()]
    assert row_of(without.out, "none")[6] == "-"
    named = row_of(cli("check", "run=none", f"draft.path={tiny.draft}").out, "none")
    assert named[:6] == row_of(without.out, "none")[:6]
    assert 0 < float(named[6]) <= 1
    own = row_of(cli("check", "run=own").out, "own")
    assert own == row_of(cli("check", "run=own", f"draft.path={tiny.draft}").out, "own")
    # A model that puts the tokens in no other order than the verifier does.
    same = row_of(cli("check", "run=none", f"draft.path={tiny.verifier}").out, "none")
    assert same[6] not in (named[6], "-")


def misrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the draft's distribution be recorded at another temperature than it was drawn with."""
    original = DraftModel.propose

    def propose(self: DraftModel, contexts: Sequence[Context]) -> list[Proposal]:
        return [flattened(proposal) for proposal in original(self, contexts)]

    def flattened(proposal: Proposal) -> Proposal:
        if proposal.draft_probs is None:
            return proposal
        flat = proposal.draft_probs.sqrt()
        return replace(proposal, draft_probs=flat / flat.sum(dim=-1, keepdim=True))

    monkeypatch.setattr(DraftModel, "propose", propose)


LENIENT = ["verification=lenient", "verification.rule.lenience=0.1", LOSSY]


@pytest.mark.parametrize("fault", [thorough("lenient"), "misrecorded", thorough("typical")])
def test_a_lossy_run_is_found(
    cli: CommandLine, tiny: Tiny, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "lenient": LENIENT,
        "typical": ["verification=typical", LOSSY],
        "misrecorded": ["proposer.temperature=0.5"],
    }
    if fault == "misrecorded":
        misrecorded(monkeypatch)
    decode(cli, tiny, "run", *DRAFT, *options[fault])
    ended = cli("check", "run=run")
    assert ended.status == 1
    assert ended.err.splitlines()[-1] == "error: not lossless: run"
    assert row_of(ended.out, "run")[-1] == "NO"


@pytest.mark.thorough
def test_several_runs_are_rows_of_one_table(cli: CommandLine, tiny: Tiny) -> None:
    """A folder of runs stands for all of them; one lossy run is enough to fail."""
    decode(cli, tiny, "both/good", "proposer=none")
    decode(cli, tiny, "both/lossy", *DRAFT, *LENIENT)
    one, folder = cli("check", "run=both/good"), cli("check", "run=both")
    pair = cli("check", "run=[both/good,both/lossy]", "batch=7")
    assert (one.status, folder.status, pair.status) == (0, 1, 1)
    assert folder.err.splitlines()[-1] == "error: not lossless: both/lossy"
    assert row_of(folder.out, "both/good") == row_of(one.out, "both/good")
    assert row_of(pair.out, "both/lossy")[-1] == "NO"


@pytest.mark.thorough
def test_later_turns_are_read_after_the_run_s_own_answers(cli: CommandLine, tiny: Tiny) -> None:
    """Rendered after other answers the prompts would have other lengths, and be refused."""
    rows = [json.dumps({"id": n, "turns": ["def add(", f"print({n}", "return"]}) for n in range(12)]
    Path("turns.jsonl").write_text("\n".join(rows))
    decode(cli, tiny, "run", *DRAFT, "prompts.path=turns.jsonl", "max_new_tokens=40")
    ended = cli("check", "run=run")
    assert ended.status == 0, ended.err + ended.out
    assert row_of(ended.out, "run")[-1] == "yes"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ["run: missing", "run=DIR"]),
        (["run=nowhere"], ["run='nowhere'", "config.yaml"]),
        (["run=5"], ["run=5"]),
        (["run=[]"], ["run=[]"]),
        (["run=x", "batch=0"], ["batch=0"]),
        (["run=x", "seed=-1"], ["seed=-1"]),
        (["run=x", "draft.path=7"], ["draft.path=7"]),
        (["run=x", "false_alarm=2"], ["false_alarm=2"]),
    ],
    ids=lambda value: " ".join(value) or "nothing",
)
def test_bad_options_are_refused(cli: CommandLine, options: list[str], names: list[str]) -> None:
    assert_one_line(cli("check", *options), names)


def test_runs_that_tell_nothing_are_refused(cli: CommandLine, tiny: Tiny) -> None:
    decode(cli, tiny, "greedy", "sampling.temperature=0", num_prompts=2)
    assert_one_line(cli("check", "run=greedy"), ["temperature 0", "proposer=none"])
    decode(cli, tiny, "short", num_prompts=2)
    assert_one_line(cli("check", "run=short"), ["run='short'", "100 tokens", "1000"])


def test_a_draft_that_does_not_fit_is_refused(cli: CommandLine, tiny: Tiny) -> None:
    decode(cli, tiny, "run", "proposer=none")
    assert_one_line(cli("check", "run=run", "draft.path=./nowhere"), ["draft.path", "./nowhere"])


def test_damaged_runs_are_named(cli: CommandLine, tiny: Tiny) -> None:
    decode(cli, tiny, "folder/run", "proposer=none")
    Path("folder/other").mkdir()
    Path("folder/other/traces.jsonl").write_text("{}")  # of something else: no config.yaml
    assert cli("check", "run=folder").status == 0
    assert_one_line(cli("check", "run=folder/other"), ["run='folder/other'", "config.yaml"])
    config = Path("folder/run/config.yaml")
    whole = config.read_text()
    config.write_text("a: [1")
    assert_one_line(cli("check", "run=folder/run"), ["config.yaml", "damaged"])
    config.write_text("a: 1")
    assert_one_line(cli("check", "run=folder/run"), ["config.yaml", "not the options of a run"])
    config.write_text(whole)
    Path("folder/run/traces.jsonl").write_text('{"prompt_id": "x", "output_ids": []}')
    assert_one_line(cli("check", "run=folder/run"), ["traces.jsonl:1", "not a trace"])


def test_changed_prompts_are_refused(cli: CommandLine, tiny: Tiny) -> None:
    decode(cli, tiny, "run", "proposer=none")
    changed = Path("many.jsonl").read_text().replace("first", "fir")
    Path("many.jsonl").write_text(changed)
    assert_one_line(
        cli("check", "run=run"), ["prompts.path='many.jsonl'", "has changed since the run"]
    )

"""`specdec-explain`: every proposer, tree and rule, its page, the report, and what it refuses."""

import json
from pathlib import Path

import pytest

from tests.support.complaints import assert_one_line
from tests.support.running import CommandLine, Ended, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")


def explained(cli: CommandLine, tiny: Tiny, *options: str) -> Ended:
    models = [f"verifier.path={tiny.verifier}", f"draft.path={tiny.draft}"]
    is_given = any(each.startswith("prompt=") for each in options)
    prompts = [] if is_given else [f"prompts.path={tiny.prompts}"]
    return cli("explain", *models, *prompts, "max_new_tokens=6", *options)


def test_the_terminal_and_a_page_show_it(cli: CommandLine, tiny: Tiny) -> None:
    ended = explained(cli, tiny, "proposer=draft_model", 'prompt="<i>&"', "output=told")
    assert ended.status == 0, ended.err
    for text in ("A language model writes one token", "proposer    draft_model", "step 1, behind"):
        assert text in ended.out
    page = Path("told/explanation.html").read_text(encoding="utf-8")
    assert "&lt;i&gt;&amp;" in page
    assert "<i>" not in page
    row = json.loads(Path("told/explanation.json").read_text(encoding="utf-8"))
    assert row["prompt"] == "<i>&"
    assert row["proposer"]["name"] == "draft_model"


def test_the_first_prompt_is_taken(cli: CommandLine, tiny: Tiny) -> None:
    ended = explained(cli, tiny, "output=told")
    assert ended.status == 0, ended.err
    row = json.loads(Path("told/explanation.json").read_text(encoding="utf-8"))
    assert row["prompt"] == "def add(first, second):"
    assert not Path("outputs").exists()


def test_reports_show_it(cli: CommandLine, tiny: Tiny) -> None:
    assert cli("decode", *tiny.options("runs/one", "proposer=ngram")).status == 0
    before = cli("report", "run=runs")
    assert before.status == 0, before.err
    assert "Step by step" not in Path("runs/report.html").read_text(encoding="utf-8")
    page_too = explained(cli, tiny, "proposer=draft_model", "tree=dynamic", "output=runs/told")
    assert page_too.status == 0, page_too.err
    after = cli("report", "run=runs")
    assert after.status == 0, after.err
    page = Path("runs/report.html").read_text(encoding="utf-8")
    assert "Step by step" in page
    assert "left out of the tree" in page
    Path("runs/told/explanation.json").write_text('{"prompt": 3}')
    assert_one_line(cli("report", "run=runs"), ["explanation.json", "no explanation"])


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["top=0"], ["top=0"]),
        (['prompt=""'], ["prompt="]),
        (["output=[]"], ["output="]),
        (["batch=2"], ["batch=2", "one text"]),
        (["prompt=a", "prompts.limit=2"], ["prompts.limit=2", "prompt=TEXT"]),
        (["judges=[block]"], ["judges", "specdec-decode"]),
        (["tracker=wandb"], ["tracker=wandb", "no run"]),
        (["proposer=draft_model", "verification=typical"], ["allow_lossy"]),
        (["-m", "top=1,2"], ["does not sweep"]),
        (["max_new_tokens=0"], ["max_new_tokens=0"]),
    ],
)
def test_bad_input_gets_one_line(
    cli: CommandLine, tiny: Tiny, options: list[str], names: list[str]
) -> None:
    assert_one_line(explained(cli, tiny, *options), names)

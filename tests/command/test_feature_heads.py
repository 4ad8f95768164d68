"""What reads features through the command line: trained, decoded, known to all commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.complaints import assert_one_line

if TYPE_CHECKING:
    from tests.support.running import CommandLine, Ended, Tiny

pytestmark = [
    pytest.mark.whole,
    pytest.mark.thorough,
    pytest.mark.usefixtures("fresh_accelerator", "empty_folder"),
]

SMALL = (
    *("data.max_length=16", "tree.gamma=2", "max_steps=1"),
    *("trainer.per_device_train_batch_size=2", "evaluation.num_prompts=1"),
    *("evaluation.max_new_tokens=4", "loss=kl"),
)


def train(cli: CommandLine, tiny: Tiny, kind: str, *more: str) -> Ended:
    depth = "train.num_heads=4" if kind == "block" else "train.steps=2"
    data = (f"data.path={tiny.text}", f"data.held_out_path={tiny.text}")
    return cli(
        *("train", f"train={kind}", f"verifier.path={tiny.verifier}", *data, *SMALL),
        *(depth, "output=head", *more),
    )


@pytest.fixture(params=["eagle", "mtp", "block"])
def head(request: pytest.FixtureRequest, cli: CommandLine, tiny: Tiny) -> tuple[str, ...]:
    """Return the options that draft with a head that was just trained."""
    ended = train(cli, tiny, request.param)
    assert ended.status == 0, ended.err
    return (f"proposer={request.param}", "proposer.path=head")


def test_it_decodes_chains_and_trees(cli: CommandLine, tiny: Tiny, head: tuple[str, ...]) -> None:
    """Chains that go on deeper than they were trained, too; greedy text is as without them."""
    plain = cli("decode", *tiny.options("plain", "proposer=none"))
    assert plain.status == 0, plain.err
    cases = {
        "chain": ("tree=chain", "tree.gamma=4"),
        "dynamic": ("tree=dynamic", "tree.max_depth=3", "tree.num_nodes=5"),
    }
    for name, tree in cases.items():
        ended = cli("decode", *tiny.options(name, *head, *tree))
        assert ended.status == 0, ended.err
        warm = ("sampling.temperature=1", "batch=2", "runtime=eager")
        ended = cli("decode", *tiny.options(f"warm_{name}", *head, *tree, *warm))
        assert ended.status == 0, ended.err
        texts = [
            [json.loads(row)["output_ids"] for row in (Path(run) / "traces.jsonl").open()]
            for run in (name, "plain")
        ]
        assert texts[0] == texts[1]
    many = ("sampling.temperature=1", "prompts.num_samples=32", "batch=48", "tree.gamma=3")
    ended = cli("decode", *tiny.options("many", *head, *many))
    assert ended.status == 0, ended.err
    ended = cli("check", "run=many")
    assert ended.status == 0, ended.err


def test_it_is_recorded_replayed_and_calibrated(
    cli: CommandLine, tiny: Tiny, head: tuple[str, ...]
) -> None:
    """A chain in closed form, of EAGLE deeper than its training, and trees along the texts."""
    warm = ("sampling.temperature=1", "tree.gamma=3")
    ended = cli("record", *tiny.options("recording", *head, *warm))
    assert ended.status == 0, ended.err
    name = head[0].removeprefix("proposer=")
    own = " ".join(head)
    arms = f"'{own} tree=chain tree.gamma=4','{own} tree=dynamic verification=match'"
    others = ("grid.proposer=[]", f"options=['draft.path={tiny.draft}']")
    ended = cli("replay", "recording=recording", f"arms=[{arms}]", *others, "output=replayed")
    assert ended.status == 0, ended.err
    assert name in Path("replayed/summary.csv").read_text()
    calibrated = ("calibrate", *head, f"verifier.path={tiny.verifier}", "max_rank=50")
    text = (f"data.path={tiny.text}", "data.max_length=24", "depth=3")
    ended = cli(*calibrated, *text, "output=tree.json", "positional=true", "sampling.temperature=1")
    assert ended.status == 0, ended.err
    assert json.loads(Path("tree.json").read_text())["depth"] == 3
    ended = cli(*calibrated, "recording=recording", "num_nodes=4", "output=other.json")
    assert ended.status == 0, ended.err
    for kind, temperature in (("calibrated", 0), ("sequoia", 1)):
        tree = (f"tree={kind}", "tree.path=tree.json", "tree.num_nodes=4")
        warm = f"sampling.temperature={temperature}"
        ended = cli("decode", *tiny.options(kind, *head, *tree, warm))
        assert ended.status == 0, ended.err


def test_it_is_compared_explained_described_and_timed(
    cli: CommandLine, tiny: Tiny, head: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What cannot be is doubted on a quiet machine, which no test has.
    monkeypatch.setattr("specdec.lab.costs.measurement.doubts", lambda *_: [])
    arms = f"arms=['proposer=none','{' '.join(head)}']"
    ended = cli("compare", *tiny.options("compared", arms, "tree.gamma=3"))
    assert ended.status == 0, ended.err
    ended = cli("explain", *tiny.options("explained", *head))
    assert ended.status == 0, ended.err
    ended = cli("describe", f"verifier.path={tiny.verifier}", *head[1:])
    assert ended.status == 0, ended.err
    name = head[0].removeprefix("proposer=")
    shapes = ("tokens=[1,2,3]", "contexts=[16]", "repeats=3", "widths=[2]")
    timed = (f"proposers=['{name} proposer.path=head']", f"prompts.path={tiny.prompts}")
    models = (f"verifier.path={tiny.verifier}", f"draft.path={tiny.draft}")
    ended = cli("costs", *models, *timed, *shapes, "max_new_tokens=12", "output=costs.json")
    assert ended.status == 0, ended.err


@pytest.mark.parametrize(
    "more", [["online=distil", "online.every=1"], ["pace=adaptive", "batch=2"]], ids=lambda m: m[0]
)
def test_it_learns_and_is_paced(
    cli: CommandLine, tiny: Tiny, head: tuple[str, ...], more: list[str]
) -> None:
    ended = cli("decode", *tiny.options("run", *head, *more, "tree.gamma=3"))
    assert ended.status == 0, ended.err


def test_a_sweep_trains_and_decodes(cli: CommandLine, tiny: Tiny) -> None:
    decode = f"decode=['prompts.path={tiny.prompts}','max_new_tokens=4']"
    ended = train(cli, tiny, "eagle", "-m", decode, "tree.gamma=3", "train.steps=1,2")
    assert ended.status == 0, ended.err
    assert len(list(Path("head").glob("*/trained/model.safetensors"))) == 2


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["train.reads=[5]"], ["train.reads=[5]", "from 0 to 0, or final"]),
        (["train.reads=[final,0]"], ["train.reads=['final', 0]", "expected [1,3,5]"]),
        (["train.fusion=add"], ["train.fusion='add'", "concat, project"]),
        (["train.steps=0"], ["train.steps=0"]),
        (["train.num_attention_heads=3"], ["train.num_attention_heads=3", "a divisor"]),
        (["joint=true"], ["joint=true", "reads=[final]"]),
    ],
    ids=lambda value: value[0] if value[0].startswith(("train.", "joint")) else "",
)
def test_what_cannot_be_trained_is_refused(
    cli: CommandLine, tiny: Tiny, options: list[str], names: list[str]
) -> None:
    assert_one_line(train(cli, tiny, "eagle", *options), names)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["train.mask=all"], ["train.mask='all'", "causal, bidirectional"]),
        (["train.labels=late"], ["train.labels='late'", "shifted, in_place"]),
        (["train.correction=gru"], ["train.correction='gru'", "none, markov"]),
        (["train.num_heads=0"], ["train.num_heads=0"]),
        (["tree.gamma=5"], ["5 levels", "4 heads"]),
        (["train.reads=[5]"], ["train.reads=[5]", "from 0 to 0, or final"]),
        (["loss=expected_accepted", "train.share=0.5"], ["train.share=0.5"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)
def test_a_block_that_cannot_be_trained_is_refused(
    cli: CommandLine, tiny: Tiny, options: list[str], names: list[str]
) -> None:
    assert_one_line(train(cli, tiny, "block", *options), names)


def test_a_tree_deeper_than_the_block_is_refused(cli: CommandLine, tiny: Tiny) -> None:
    ended = train(cli, tiny, "block")
    assert ended.status == 0, ended.err
    head = ("proposer=block", "proposer.path=head", "tree.gamma=5")
    assert_one_line(cli("decode", *tiny.options("run", *head)), ["5 levels", "4 heads"])


def test_one_kind_is_not_taken_for_another(
    cli: CommandLine, tiny: Tiny, head: tuple[str, ...]
) -> None:
    other = "eagle" if head[0] == "proposer=mtp" else "mtp"
    ended = cli("decode", *tiny.options("run", f"proposer={other}", "proposer.path=head"))
    assert_one_line(ended, ["proposer.path='head'", f"use {head[0]}"])

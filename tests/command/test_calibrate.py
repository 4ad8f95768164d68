"""`specdec-calibrate` from the command line: measure, write, grow, and refuse in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.complaints import assert_one_line
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

NOWHERE = "verifier.path=./no_such_model"  # what loads a model says so
TREE = '{"joint": {"paths": [[0], [0, 0], [400]]}}'


def measured(cli: CommandLine, tiny: Tiny, *options: str) -> dict[str, Any]:
    """Calibrate a draft model and read the file."""
    models = [f"verifier.path={tiny.verifier}", f"draft.path={tiny.draft}"]
    text = [f"data.path={tiny.text}", "data.max_length=24", "output=out/tree.json"]
    ended = cli("calibrate", *models, *text, "max_rank=299", *options)
    assert ended.status == 0, ended.err
    return {**json.loads(Path("out/tree.json").read_text()), "printed": ended.out}


def test_the_file_says_what_was_measured(cli: CommandLine, tiny: Tiny) -> None:
    found = measured(cli, tiny, "depth=3", "max_nodes=40", "num_nodes=5")
    assert found["proposer"] == "draft_model"
    assert (found["draft_path"], found["data_path"]) == (str(tiny.draft), str(tiny.text))
    assert (found["depth"], found["max_rank"], len(found["marginals"])) == (3, 299, 3)
    for kind in ("joint", "product"):
        tree = found[kind]
        assert len(tree["paths"]) == len(tree["counts"]) == 40
        assert len(tree["expected_block_efficiency"]) == 40
        total = sum(tree["counts"]) / found["num_positions"]
        assert tree["expected_block_efficiency"][-1] == pytest.approx(1 + total)
    assert found["joint"]["counts"] == sorted(found["joint"]["counts"], reverse=True)
    # With every rank counted, each position has one path of each length.
    assert all(sum(row) == found["num_positions"] for row in found["marginals"])


def test_what_is_printed(cli: CommandLine, tiny: Tiny) -> None:
    found = measured(cli, tiny, "num_nodes=5")
    rows = [line.split() for line in found["printed"].splitlines()]
    sizes = [int(row[0]) for row in rows if len(row) == 4 and row[0].isdigit()]
    assert sizes[:5] == [1, 2, 4, 5, 8]
    assert sum("rank " in line for line in found["printed"].splitlines()) == 5
    share = 100 * found["joint"]["counts"][0] / found["num_positions"]
    assert f"rank {found['joint']['paths'][0][0]}  {share:.2f} %" in found["printed"]
    assert "not over the step starts" in " ".join(found["printed"].split())


@pytest.mark.thorough
def test_fewer_samples_and_other_batches(cli: CommandLine, tiny: Tiny) -> None:
    """A batch is only how many samples are read at a time; a limit is how many in all."""
    whole, single = measured(cli, tiny), measured(cli, tiny, "batch=1")
    assert single["joint"] == whole["joint"]
    some = measured(cli, tiny, "data.limit=2")
    assert some["num_positions"] == 2 * (24 - 1 - 4)
    assert some["num_positions"] < whole["num_positions"]


POSITIONAL = ("positional=true", "sampling.temperature=1", "max_children=3")


def test_children_are_measured_when_they_are_asked_for(cli: CommandLine, tiny: Tiny) -> None:
    """Beside the paths, which stay as they are; and the same in other batches."""
    plain, found = measured(cli, tiny), measured(cli, tiny, *POSITIONAL)
    assert "positional" not in plain
    assert {name: found[name] for name in ("joint", "product")} == {
        name: plain[name] for name in ("joint", "product")
    }
    positional = found["positional"]
    (row,) = positional["acceptance"]
    assert (len(row), positional["all_depths"]) == (3, True)
    assert 0 < sum(row) < 1
    # All tokens but the first of each sample: more than those that paths of four begin at.
    assert positional["num_positions"] > found["num_positions"]
    assert positional["sampling"]["temperature"] == 1
    assert "positional acceptance" in found["printed"]
    assert "draws without replacement" in found["printed"]
    assert "tree=sequoia" in found["printed"]
    (again,) = measured(cli, tiny, *POSITIONAL, "batch=1")["positional"]["acceptance"]
    assert again == pytest.approx(row, abs=1e-5)
    (other,) = measured(cli, tiny, *POSITIONAL, "sampling.temperature=0.3")["positional"][
        "acceptance"
    ]
    assert other != pytest.approx(row, abs=1e-3)


def test_what_is_printed_of_a_sequoia_is_what_is_grown(cli: CommandLine, tiny: Tiny) -> None:
    """The printed block efficiency is the tree's own."""
    from specdec.tree.sequoia import Sequoia

    printed = measured(cli, tiny, *POSITIONAL, "num_nodes=5")["printed"]
    tree = Sequoia("out/tree.json", num_nodes=5)
    part = printed[printed.index("draws without replacement") :]
    assert sum("child " in line for line in part.splitlines()) == tree.num_nodes
    rows = [line.split() for line in part.splitlines()]
    assert ["5", str(tree.max_depth), f"{1 + tree.expected_accepted:.3f}"] in rows


def test_heads_are_measured_and_grown(cli: CommandLine, tiny: Tiny) -> None:
    """Train -> calibrate -> decode, as a user would."""
    data = [f"data.path={tiny.text}", "data.max_length=24"]
    model = f"verifier.path={tiny.verifier}"
    small = ["train.num_heads=3", "tree.gamma=2", "max_steps=1", "output=heads"]
    held_out = f"data.held_out_path={tiny.text}"
    assert cli("train", "train=chained", model, *data, held_out, *small).status == 0
    heads = ["proposer=chained", "proposer.path=heads"]
    options = ["max_rank=299", "output=tree.json", *POSITIONAL]
    ended = cli("calibrate", *heads, model, *data, *options)
    assert ended.status == 0, ended.err
    found = json.loads(Path("tree.json").read_text())
    assert found["depth"] == len(found["positional"]["acceptance"]) == 3
    assert found["positional"]["num_positions"] == found["num_positions"]
    assert not found["positional"]["all_depths"]
    tree = ["tree=calibrated", "tree.path=tree.json", "tree.num_nodes=9"]
    ended = cli("decode", *tiny.options("run", *heads, *tree, "prompts.limit=1"))
    assert ended.status == 0, ended.err
    rows = Path("run/traces.jsonl").read_text().splitlines()
    assert max(step["drafted"] for step in json.loads(rows[0])["steps"]) == 9
    tree = ["tree=sequoia", "tree.path=tree.json", "tree.num_nodes=7", "sampling.temperature=1"]
    ended = cli("decode", *tiny.options("sampled", *heads, *tree, "prompts.limit=1"))
    assert ended.status == 0, ended.err
    rows = Path("sampled/traces.jsonl").read_text().splitlines()
    assert max(step["drafted"] for step in json.loads(rows[0])["steps"]) == 7
    assert json.loads(Path("sampled/summary.json").read_text())["lossless"] is True
    ended = cli("decode", *tiny.options("deep", *heads, *tree, "tree.max_depth=4"))
    assert_one_line(ended, ["tree.max_depth=4", "depth 3"])


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (
            ["proposer=ngram"],
            ["proposer='ngram'", "medusa, chained, eagle, mtp, block, early_exit, draft_model"],
        ),
        (["proposer=none"], ["proposer='none'"]),
        (["depth=0"], ["depth=0", ">= 1"]),
        (["max_rank=-1"], ["max_rank=-1"]),
        (["num_nodes=600"], ["num_nodes=600", "max_nodes=512"]),
        (["batch=0"], ["batch=0"]),
        (["data.limit=0"], ["data.limit=0"]),
        (["data.max_length=2"], ["data.max_length=2"]),
        (["data.path=nothing.txt"], ["data.path='nothing.txt'", "no such file"]),
        (["output=."], ["output='.'", "a file"]),
        (["output=null"], ["output=None", "a file"]),
        (["data.path=null"], ["data.path: missing", "recording=DIR"]),
        (["tree=sampled"], ["tree: cannot be chosen here"]),
        (["positional=3"], ["positional=3", "true or false"]),
        (["max_children=0"], ["max_children=0"]),
        (["positional=true"], ["sampling.temperature=0", "positional=true"]),
        (
            ["positional=true", "sampling.temperature=1", "proposer.temperature=0"],
            ["proposer.temperature=0", "second child"],
        ),
        (["sampling.top_p=2"], ["sampling.top_p=2"]),
        (["output=file/below.json"], ["file"]),
        (["proposer=medusa", "proposer.path=heads", "depth=5"], ["depth=5", "4 heads"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_bad_options_are_refused_before_a_model_is_loaded(
    cli: CommandLine, tiny: Tiny, options: list[str], names: list[str]
) -> None:
    Path("file").write_text("precious")
    write_heads_config()
    given = [f"data.path={tiny.text}", "output=tree.json", NOWHERE]
    given += [] if "proposer=medusa" in options else ["draft.path=./no_such_model"]
    assert_one_line(cli("calibrate", *given, *options), names)
    assert not Path("tree.json").exists()


@pytest.mark.parametrize("missing", ["data.path", "output"])
def test_a_missing_option_is_named(cli: CommandLine, tiny: Tiny, missing: str) -> None:
    given = {"data.path": tiny.text, "output": "tree.json"}
    options = [f"{name}={value}" for name, value in given.items() if name != missing]
    assert_one_line(cli("calibrate", *options), [missing])


@pytest.mark.thorough
def test_a_greedy_verifier_may_have_a_draft_that_samples(cli: CommandLine, tiny: Tiny) -> None:
    """At temperature 0 there is something to draw if the draft has a temperature of its own."""
    found = measured(cli, tiny, "positional=true", "proposer.temperature=1", "max_children=300")
    (row,) = found["positional"]["acceptance"]
    assert sum(row) == pytest.approx(1, abs=0.05), "one of all tokens is always the right one"
    assert found["positional"]["proposer_temperature"] == 1


def test_a_text_without_a_path_is_named(cli: CommandLine, tiny: Tiny) -> None:
    models = [f"verifier.path={tiny.verifier}", f"draft.path={tiny.draft}"]
    options = [*models, f"data.path={tiny.text}", "output=tree.json"]
    ended = cli("calibrate", *options, "data.max_length=4")
    assert_one_line(ended, ["data.path", "4 counted tokens"])


# --- Trees that a proposer cannot grow ---


def write_heads_config(kind: str = "medusa") -> None:
    Path("heads").mkdir()
    found: dict[str, object] = {"num_heads": 4, "vocab_size": 300, "hidden_size": 32}
    found |= {"kind": {"medusa": "MedusaHeads", "chained": "ChainedHeads"}[kind]}
    Path("heads/config.json").write_text(json.dumps(found))


HEADS = "in proposer.path='heads'"


@pytest.mark.parametrize("proposer", ["medusa", "chained"])
@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["tree.gamma=5"], ["tree: 5 levels", "4 heads", HEADS]),
        (["tree=sparse", "tree.paths=[[0,0,0,0,0]]"], ["tree: 5 levels", "4 heads", HEADS]),
        (["tree=sparse", "tree.paths=[[300]]"], ["tree: rank 300", "300 tokens", HEADS]),
        (
            ["tree=calibrated", "tree.path=tree.json", "tree.num_nodes=3"],
            ["tree: rank 400", "300 tokens", HEADS],
        ),
    ],
    ids=["chain", "deep", "wide", "calibrated"],
)
@pytest.mark.parametrize("entry_point", ["decode", "compare"])
def test_trees_beyond_the_heads_are_refused_before_a_model_is_loaded(
    cli: CommandLine, entry_point: str, proposer: str, options: list[str], names: list[str]
) -> None:
    write_heads_config(proposer)
    Path("tree.json").write_text(TREE)
    arm = [f"proposer={proposer}", "proposer.path=heads", *options]
    given = arm if entry_point == "decode" else [f'arms=["{" ".join(arm)}"]']
    assert_one_line(cli(entry_point, NOWHERE, *given), names)


def test_ranks_beyond_a_draft_s_vocabulary_are_refused_before_a_model_is_loaded(
    cli: CommandLine, tiny: Tiny
) -> None:
    draft = ["proposer=draft_model", f"draft.path={tiny.draft}"]
    tree = ["tree=sparse", "tree.paths=[[0],[300]]"]
    ended = cli("decode", NOWHERE, *draft, *tree)
    assert_one_line(ended, ["tree: rank 300", "300 tokens", f"draft.path='{tiny.draft}'"])
    assert_one_line(cli("decode", NOWHERE, *draft, "tree=sparse"), ["verifier.path", "no_such"])


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_a_folder_that_holds_no_heads_is_named(cli: CommandLine, text: str | None) -> None:
    if text is not None:
        Path("heads").mkdir()
        Path("heads/config.json").write_text(text)
    heads = ["proposer=medusa", "proposer.path=heads", "tree.gamma=99"]
    named = "verifier.path='./no_such_model'" if text is None else "proposer.path='heads': "
    assert_one_line(cli("decode", NOWHERE, *heads), [named])


def test_a_tree_that_is_used_otherwise_than_it_was_measured_says_so(
    cli: CommandLine, tiny: Tiny
) -> None:
    """Lossless all the same, but not the best tree any more."""
    given = [f"data.path={tiny.text}", "output=tree.json", "positional=true", "max_rank=3"]
    warm = ["sampling.temperature=1", "proposer=draft_model"]
    models = [f"verifier.path={tiny.verifier}", f"draft.path={tiny.draft}"]
    assert cli("calibrate", *given, *warm, *models).status == 0
    tree = ["tree=sequoia", "tree.path=tree.json", "tree.num_nodes=3"]
    as_measured = cli("decode", *tiny.options("a", *warm, *tree))
    assert as_measured.status == 0, as_measured.err
    assert "note:" not in as_measured.out
    other = [warm[1], "sampling.temperature=0.5", f"draft.path={tiny.padded}"]
    ended = cli("decode", *tiny.options("b", *other, *tree))
    notes = [line for line in ended.out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2
    assert f"tree.path=tree.json was measured with draft.path={tiny.draft}, this is" in notes[0]
    assert notes[1].endswith("sampling.temperature=1, this is 0.5")
    ranked = ["tree=calibrated", tree[1], "tree.num_nodes=1"]
    counted = cli("decode", *tiny.options("c", *other[:2], *ranked))
    assert counted.status == 0, counted.err
    assert "note:" not in counted.out, "ranks are counted at no temperature"

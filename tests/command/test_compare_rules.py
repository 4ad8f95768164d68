"""compare with one proposer and several rules: names, a reference arm, and judges."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from specdec.core.errors import UserError
from specdec.core.trace import Trace
from specdec.metrics import Tally, efficiency_contrast, judged
from specdec.results.run_dir import read_traces
from tests.support.marking import thorough
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

TREE = "proposer=draft_model tree=sampled tree.widths=[2,1]"
ARMS = (
    'arms=["proposer=none","proposer=draft_model judges=[block,rejection]",'
    '"proposer=draft_model verification=block",'
    '"proposer=draft_model verification=top_k verification.allow_lossy=true",'
    f'"{TREE} verification=traversal"]'
)
NAMES = ("none", "draft_model", "draft_model,block", "draft_model,top_k")
TREE_NAME = "draft_model,sampled,tree.widths=2-1,traversal"


@dataclass(frozen=True)
class Compared:
    """A finished comparison, shared by the tests that only read it."""

    folder: Path
    out: str

    def summary(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name / "summary.json").read_text())

    def traces(self, name: str) -> list[Trace]:
        return read_traces(self.folder / name)


@pytest.fixture(scope="module")
def compared(cli: CommandLine, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("rules")
    options = tiny.options(folder, ARMS, "reference=draft_model", "sampling.temperature=1")
    ended = cli("compare", *options)
    assert ended.status == 0, ended.err
    return Compared(folder, ended.out)


def test_arms_are_called_by_what_they_do_not_share(compared: Compared) -> None:
    """Judges and permissions name no arm: they change nothing about its text."""
    assert {path.name for path in compared.folder.iterdir()} == {
        *NAMES,
        TREE_NAME,
        *("plots", "report.html", "summary.csv", "summary.md", "summary.parquet"),
    }


@pytest.mark.parametrize(
    ("arms", "names"),
    [
        (["proposer=none", "proposer=ngram"], ["none", "ngram"]),
        (["proposer=ngram"], ["ngram"]),
        (
            ["proposer=none", "proposer=ngram tree.gamma=2", "proposer=ngram tree.gamma=4"],
            ["none", "tree.gamma=2", "tree.gamma=4"],
        ),
        (
            ["proposer=draft_model verification=match", "proposer=draft_model verification=block"],
            ["match", "block"],
        ),
        (["proposer=ngram", "proposer=ngram tree.gamma=4"], ["ngram", "ngram,tree.gamma=4"]),
        (
            ["proposer=medusa tree=sparse tree.paths=[[0],[0,1]]", "proposer=medusa tree=chain"],
            ["sparse,tree.paths=0-0-1", "chain"],
        ),
    ],
    ids=["two", "one", "length", "rule", "nameless", "paths"],
)
def test_what_all_arms_share_is_left_out_of_their_names(arms: list[str], names: list[str]) -> None:
    assert import_module("specdec.command.arm_names").names(arms) == names


def test_the_reference_is_what_block_efficiency_is_compared_with(compared: Compared) -> None:
    """Stored and recomputed from the traces alone; the reference itself has no such number."""
    reference = Tally.of(compared.traces("draft_model"))
    for name in ("none", "draft_model,block", "draft_model,top_k", TREE_NAME):
        summary, tally = compared.summary(name), Tally.of(compared.traces(name))
        assert summary["reference"] == "draft_model"
        contrast = efficiency_contrast(tally, reference)
        assert summary["difference"] == contrast.difference().to_row()
        assert summary["ratio"] == contrast.ratio().to_row()
    assert not {"reference", "difference", "ratio"} & compared.summary("draft_model").keys()
    assert compared.summary("none")["ratio"]["value"] < 1
    assert "reference arm: draft_model" in compared.out
    assert "speedup" in compared.out, "the baseline of the speedup stays proposer=none"


@pytest.mark.parametrize(
    ("reference", "found"), [("null", None), ("1", "ngram"), thorough("0", "none")]
)
def test_a_reference_by_number_or_the_best(
    cli: CommandLine, tiny: Tiny, reference: str, found: str | None
) -> None:
    arms = 'arms=["proposer=none","proposer=ngram"]'
    ended = cli("compare", *tiny.options("run", arms, f"reference={reference}"))
    assert ended.status == 0, ended.err
    summaries = {
        n: json.loads(Path(f"run/{n}/summary.json").read_text()) for n in ("none", "ngram")
    }
    best = max(summaries, key=lambda name: summaries[name]["block_efficiency"]["value"])
    references = {each.get("reference") for each in summaries.values()}
    assert references == {None, found or best}


def test_judges_are_recorded_summarized_and_shown(compared: Compared) -> None:
    summary, traces = compared.summary("draft_model"), compared.traces("draft_model")
    assert set(summary["judged"]) == {"block", "rejection"}
    again = judged(Tally.of(traces))["block"]
    assert summary["judged"]["block"] == {name: each.to_row() for name, each in again.items()}
    assert summary["judged"]["rejection"]["difference"]["value"] == 0.0
    assert summary["judged"]["block"]["difference"]["value"] >= 0.0
    assert "shown to other rules" in compared.out
    assert compared.summary("draft_model,block")["judged"] == {}


def test_a_lossy_arm_says_how_far_it_strays(compared: Compared) -> None:
    summary = compared.summary("draft_model,top_k")
    assert not summary["lossless"]
    assert summary["total_variation"]["value"] > 0
    assert summary["kl"]["value"] > 0
    assert "no: TV 0." in compared.out
    lossless = [compared.summary(name) for name in ("draft_model", "draft_model,block", TREE_NAME)]
    assert all(each["total_variation"] is each["kl"] is None for each in lossless)


def test_only_sampled_candidates_have_a_bound(compared: Compared) -> None:
    assert compared.summary("none")["transport_bound"] is None
    chain = compared.summary("draft_model")
    assert chain["transport_bound"]["value"] == pytest.approx(root_overlap(compared, "draft_model"))
    tree = compared.summary(TREE_NAME)
    assert tree["transport_bound"]["value"] > root_overlap(compared, TREE_NAME)


def root_overlap(compared: Compared, arm: str) -> float:
    """Average sum_v min(p, q) over the roots: of one draw it is the optimum."""
    steps = [step for trace in compared.traces(arm) for step in trace.steps if step.overlap]
    return sum(step.overlap[0] for step in steps) / len(steps)


def test_a_saved_configuration_with_judges_runs_again(compared: Compared) -> None:
    """Outside of Hydra, too: the judges come from their YAML files."""
    arm = import_module("specdec.lab.arm")
    config = OmegaConf.load(compared.folder / "draft_model" / "config.yaml")
    spec = import_module("specdec.command.options").arm_spec(config)
    repeated = arm.build_arm(spec, spec.verifier.build())
    traces = list(repeated.decode(spec.prompts.load()))
    saved = compared.traces("draft_model")
    assert [[s.judged for s in t.steps] for t in traces] == [
        [s.judged for s in t.steps] for t in saved
    ]


def test_arms_of_one_name_are_numbered_and_long_names_cut() -> None:
    arm_names = import_module("specdec.command.arm_names")
    flat, deep = "proposer=medusa tree.paths=[[0],[1]]", "proposer=medusa tree.paths=[[0,1]]"
    assert arm_names.names([flat, deep]) == ["tree.paths=0-1", "tree.paths=0-1+2"]
    judged = ["proposer=draft_model judges=[block]", "proposer=draft_model judges=[match]"]
    assert arm_names.names(judged) == ["draft_model", "draft_model+2"]
    many = f"proposer=medusa tree.paths={[[0] * length for length in range(1, 70)]}"
    (name,) = arm_names.names([many])
    assert len(name) == 80
    assert name.startswith("medusa,tree.paths=0-")


@pytest.mark.usefixtures("ticking")  # else a busy machine has no speed to tell
def test_speed_is_compared_with_whatever_arm_proposes_nothing(cli: CommandLine, tiny: Tiny) -> None:
    """Also where it is called by another of its options."""
    arms = 'arms=["proposer=ngram","proposer=none verification=match"]'
    ended = cli("compare", *tiny.options("run", arms))
    assert ended.status == 0, ended.err
    summary = json.loads(Path("run/ngram/summary.json").read_text())
    assert summary["speedup"]["value"] > 0
    assert summary["same_text"] == {"equal": 3, "of": 3}


@pytest.mark.parametrize("option", ["max_new_tokens=4", "stop_strings=[x]"])
def test_arms_of_unlike_ends_are_not_compared(cli: CommandLine, tiny: Tiny, option: str) -> None:
    arms = f'arms=["proposer=none","proposer=ngram {option}"]'
    ended = cli("compare", *tiny.options("run", arms))
    assert ended.status == 2
    assert f"the same {option.split('=')[0]} in every arm" in ended.err


def test_a_turn_that_cannot_fit_is_refused_before_any_is_decoded(
    cli: CommandLine, tiny: Tiny
) -> None:
    turns = ["def add(", "x = 1; " * 3000]
    Path("long.jsonl").write_text(json.dumps({"id": "b", "turns": turns}))
    for entry_point in ("compare", "decode"):
        ended = cli(entry_point, *tiny.options("run", "prompts.path=long.jsonl"))
        assert ended.status == 2
        assert "prompt b#1" in ended.err
        assert not list(Path().rglob("traces.jsonl"))


def test_what_was_decoded_before_a_mistake_is_summarized(
    cli: CommandLine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where answers fill the context, a later turn fails in mid-run."""
    arm = import_module("specdec.lab.arm")
    decode = arm.Arm.decode

    def failing(
        self: Any, prompts: Sequence[Any], looked_at: Sequence[str] = ()
    ) -> Iterator[Trace]:
        if prompts[0].prompt_id == "text":
            raise UserError("prompt text#1: too long")
        yield from decode(self, prompts)

    monkeypatch.setattr(arm.Arm, "decode", failing)
    ended = cli("compare", *tiny.options("run", 'arms=["proposer=none","proposer=ngram"]'))
    assert ended.status == 2
    assert ended.err.splitlines()[-1] == "error: prompt text#1: too long"
    for name in ("none", "ngram"):
        summary = json.loads(Path(f"run/{name}/summary.json").read_text())
        assert summary["num_prompts"] == 2

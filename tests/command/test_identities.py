"""Results belong to the very files, options and code that they came from."""

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from specdec.core.jsonl import read_jsonl
from tests.identity_fuzz import fuzz
from tests.support.importing import forget_modules

if TYPE_CHECKING:
    from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

LABORATORY = """from specdec.core.tree import CandidateTree
from specdec.core.values import Draw, Proposal


class First:
    draw = Draw.DETERMINISTIC
    layers = ()
    max_depth = 1
    token = 5

    def open(self, num_rows, capacity, vocab_size):
        pass

    def reset(self, contexts):
        pass

    def propose(self, contexts):
        chains = [[self.token][: context.max_depth] for context in contexts]
        return [
            Proposal(CandidateTree.chain(context.token_ids[-1], chain))
            for context, chain in zip(contexts, chains)
        ]

    def update(self, contexts, verdicts):
        pass


class Second(First):
    token = 7
"""


@pytest.fixture
def lab(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two proposers in one module, and files that choose them, one called as one of ours."""
    folder = empty_folder / "lab"
    (folder / "conf/proposer").mkdir(parents=True)
    (folder / "outlab").mkdir()
    (folder / "outlab/ngram.py").write_text(LABORATORY)
    for choice, name in (("first", "First"), ("second", "Second")):
        file = folder / f"conf/proposer/{choice}.yaml"
        file.write_text(f"_target_: outlab.ngram.{name}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return folder


def sweep(cli: "CommandLine", tiny: "Tiny", *more: str) -> str:
    ended = cli("decode", *tiny.options("sweep"), "-m", *more)
    assert ended.status == 0, ended.err
    return ended.out


def names(folder: str = "sweep") -> list[str]:
    return sorted(path.parent.name for path in Path(folder).glob("*/status.json"))


def arms(folder: str = "sweep") -> list[str]:
    import pandas as pd

    return sorted(pd.read_csv(Path(folder) / "summary.csv")["arm"])


@pytest.mark.thorough
def test_a_fuzz_of_changes_and_respellings_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of it: `python tests/identity_fuzz.py`."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "fuzz").mkdir()
    assert fuzz(tmp_path / "fuzz", changes=12, respellings=8, seed=1) == []


def test_two_plug_ins_of_one_module_are_two_arms_named_as_they_were_chosen(
    tiny: "Tiny", cli: "CommandLine", lab: Path
) -> None:
    out = sweep(cli, tiny, "proposer=ngram,first,second", "--config-dir", str(lab / "conf"))
    assert "3 runs from 3 combinations" in out
    assert [name.rsplit("-", 1)[0] for name in names()] == ["first", "ngram", "second"]
    assert arms() == ["first", "ngram", "second"]


def test_an_edited_plug_in_is_another_run_and_another_arm(
    tiny: "Tiny", cli: "CommandLine", lab: Path
) -> None:
    overrides = ("proposer=first", "--config-dir", str(lab / "conf"))
    sweep(cli, tiny, *overrides)
    assert "1 complete, 0 to run" in sweep(cli, tiny, *overrides)
    file = lab / "outlab/ngram.py"
    file.write_text(file.read_text().replace("token = 5", "token = 6"))
    forget_modules(lab)
    assert "0 complete, 1 to run" in sweep(cli, tiny, *overrides)
    assert len(names()) == 2
    first, second = arms()
    assert first == "first"
    assert second.startswith("first (")


def test_one_run_in_other_words_is_decoded_once_and_reported_once(
    tiny: "Tiny", cli: "CommandLine", empty_folder: Path
) -> None:
    shutil.copy(tiny.prompts, "mine.jsonl")
    shutil.copytree(tiny.draft, "copy")
    sweep(cli, tiny, "prompts.path=mine.jsonl", "proposer=none", "sampling.temperature=1")
    absolute = f"prompts.path={empty_folder / 'mine.jsonl'}"
    again = sweep(cli, tiny, absolute, "proposer=none", "sampling.temperature=1,1.0")
    assert "1 run from 2 combinations, 1 complete, 0 to run" in again
    options = ("proposer=draft_model", "sampling.temperature=1.0", absolute)
    sweep(cli, tiny, *options)
    assert "1 complete, 0 to run" in sweep(cli, tiny, *options, "draft.path=copy")
    # One setting, whichever way the prompts were named.
    assert arms() == ["draft_model, chain, rejection", "none"]


def test_other_weights_under_the_same_path_are_another_arm(
    tiny: "Tiny", cli: "CommandLine"
) -> None:
    shutil.copytree(tiny.draft, "draft")
    overrides = ("draft.path=draft", "proposer=draft_model")
    sweep(cli, tiny, *overrides)
    shutil.copy(tiny.verifier / "model.safetensors", "draft")
    assert "0 complete, 1 to run" in sweep(cli, tiny, *overrides)
    first, second = arms()
    assert first != second
    rows = [
        [row for _, row in read_jsonl(Path("sweep") / name / "traces.jsonl")] for name in names()
    ]
    accepted = {sum(step["accepted"] for row in each for step in row["steps"]) for each in rows}
    assert len(accepted) == 2, "the weights that were loaded first decoded again"


def test_a_prompt_in_the_middle_of_a_large_file_counts(tiny: "Tiny", cli: "CommandLine") -> None:
    filler = "x" * 1000
    rows = [json.dumps({"id": n, "prompt": f"{n} {filler}"}) for n in range(6000)]
    rows[0] = json.dumps({"id": 0, "prompt": "import os"})
    Path("large.jsonl").write_text("\n".join(rows) + "\n")
    overrides = ("prompts.path=large.jsonl", "prompts.limit=1", "proposer=none")
    sweep(cli, tiny, *overrides)
    rows[3000] = rows[3000].replace("x", "y")
    Path("large.jsonl").write_text("\n".join(rows) + "\n")
    assert "0 complete, 1 to run" in sweep(cli, tiny, *overrides)


def test_runs_of_other_code_of_ours_are_kept_and_said(
    tiny: "Tiny", cli: "CommandLine", monkeypatch: pytest.MonkeyPatch
) -> None:
    from specdec.results import provenance

    with monkeypatch.context() as patch:
        patch.setattr(provenance, "source_digest", lambda: "0123456789abcdef")
        patch.setattr(provenance, "_git_state", lambda: {"commit": "f00d" * 10, "dirty": True})
        sweep(cli, tiny, "proposer=none")
    out = sweep(cli, tiny, "proposer=none,ngram")
    assert "1 complete, 1 to run" in out
    assert "decoded by other code than this: 1 by" in out
    assert "at f00df00, changed, source 012345" in out
    page = Path("sweep/summary.md").read_text()
    assert "decoded by several states of the code" in page
    assert "resume=false" not in sweep(cli, tiny, "proposer=ngram")


def test_costs_are_matched_by_what_was_measured_not_by_its_name(
    tiny: "Tiny", monkeypatch: pytest.MonkeyPatch
) -> None:
    from specdec.command.compose import compose_decode
    from specdec.command.options import proposer_part
    from specdec.lab.identity import draft_of

    shutil.copytree(tiny.draft, "copy")
    paths = [tiny.draft, "copy", f"{Path.cwd()}/./copy", tiny.padded]
    arms = [["proposer=draft_model", f"draft.path={path}"] for path in paths]
    known = [draft_of(proposer_part(compose_decode(each))).known_by for each in arms]
    assert known[0] == known[1] == known[2] != known[3]
    foreign = [
        "proposer=draft_model",
        f"draft.path={tiny.draft}",
        "proposer._target_=my_draft.Mine",
    ]
    monkeypatch.syspath_prepend(".")
    Path("my_draft.py").write_text(
        "from specdec.proposer.draft_model import DraftModel\nclass Mine(DraftModel): pass\n"
    )
    assert draft_of(proposer_part(compose_decode(foreign))).known_by != known[0]


def test_names_on_the_hub_are_known_by_their_commit(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline by the one that was downloaded; the next commit is another model."""
    from huggingface_hub import constants

    from specdec.lab import identity as naming

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(empty_folder))
    ref = empty_folder / "models--lab--model/refs/main"
    ref.parent.mkdir(parents=True)
    found: list[dict[str, str]] = []
    for commit in ("a" * 40, "b" * 40):
        ref.write_text(commit)
        naming.commit_of.cache_clear()
        found.append(naming.files_of({"verifier.path": "lab/model", "prompts.path": "lab/none"}))
    naming.commit_of.cache_clear()
    assert found == [{"verifier.path": "a" * 40}, {"verifier.path": "b" * 40}]


@pytest.mark.parametrize("command", ["check", "record"])
@pytest.mark.parametrize("changed", ["prompts.path", "verifier.path"])
def test_texts_are_scored_only_with_what_they_came_from(
    tiny: "Tiny", cli: "CommandLine", command: str, changed: str
) -> None:
    """Other prompts of the same length, or other weights, would be told nothing about."""
    shutil.copytree(tiny.verifier, "verifier")
    shutil.copy(tiny.prompts, "prompts.jsonl")
    named = ("verifier.path=verifier", "prompts.path=prompts.jsonl", "sampling.temperature=1")
    ended = cli("decode", *tiny.options("run", *named, "max_new_tokens=64", "proposer=none"))
    assert ended.status == 0, ended.err
    if changed == "prompts.path":
        text = Path("prompts.jsonl").read_text()
        Path("prompts.jsonl").write_text(text.replace("first second", "first sedond", 1))
    else:
        shutil.copy(tiny.draft / "model.safetensors", "verifier")
    ended = cli(command, "run=run", *(["output=recorded"] if command == "record" else []))
    assert ended.status == 2
    assert f"{changed}=" in ended.err
    assert "has changed since the run" in ended.err

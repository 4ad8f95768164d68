"""Revisions of models on the Hub, read from a cache that was filled beforehand."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from running import CommandLine, Tiny
from specdec.experiments.naming import commit_of

from specdec.core.errors import UserError
from specdec.lm.load import load, require_loadable
from specdec.report.run_dir import read_traces

COMMITS = {"main": "1" * 40, "v2": "2" * 40}
NAME = "somebody/model"


@pytest.fixture
def hub(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cache with two states of one model: the verifier, and in v2 the draft."""
    folder = tmp_path / "models--somebody--model"
    for (ref, commit), model in zip(COMMITS.items(), (tiny.verifier, tiny.draft), strict=True):
        shutil.copytree(model, folder / "snapshots" / commit)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(commit, encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit_of.cache_clear()
    yield NAME
    commit_of.cache_clear()


def weights(path: Any, **options: Any) -> list[float]:
    found: Any = load(path, **options).model.get_input_embeddings().weight
    return found[0, :4].tolist()


def test_each_state_is_loaded(hub: str, tiny: Tiny) -> None:
    first, second = weights(tiny.verifier), weights(tiny.draft)
    assert first != second
    assert weights(hub) == weights(hub, revision="main") == first
    assert weights(hub, revision="v2") == weights(hub, revision=COMMITS["v2"]) == second


def test_a_revision_that_is_not_there_is_one_line(hub: str) -> None:
    for refuse in (load, require_loadable):
        with pytest.raises(UserError) as caught:
            refuse(hub, revision="v3", field="draft.path")
        said = str(caught.value)
        assert said.startswith(f"draft.path={hub!r}: not loaded at draft.revision='v3'; expected")
        assert "\n" not in said


@pytest.mark.parametrize("revision", [3, "", True, ["v2"]])
def test_what_is_no_revision(hub: str, revision: Any) -> None:
    with pytest.raises(UserError, match=r"^verifier\.revision=.*: expected a branch, a tag or a"):
        load(hub, revision=revision)


@pytest.mark.parametrize("path", ["zoo:verifier", None])
def test_a_folder_has_one_state(path: str | None, tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"^verifier\.revision='v2': verifier\.path=.* lies here"):
        load(path or str(tiny.verifier), revision="v2")


def test_a_run_is_known_by_the_commit(hub: str, tiny: Tiny, cli: CommandLine) -> None:
    options = tiny.options("run", f"verifier.path={hub}", f"draft.path={hub}", "tree.gamma=2")
    drafted = [*options, "proposer=draft_model", "draft.revision=v2"]
    ended = cli("decode", *drafted, "verifier.revision=main")
    assert ended.status == 0, ended.err
    facts = json.loads(Path("run/provenance.json").read_text(encoding="utf-8"))
    assert facts["files"]["verifier.path"] == COMMITS["main"]
    assert facts["files"]["draft.path"] == COMMITS["v2"]
    greedy = [trace.output_ids for trace in read_traces(Path("run"))]
    ended = cli("decode", *drafted, "verifier.revision=v2")
    assert "holds a run of other options" in ended.err
    ended = cli("decode", *drafted, "verifier.revision=v2", "output=other")
    assert ended.status == 0, ended.err
    assert [trace.output_ids for trace in read_traces(Path("other"))] != greedy
    ended = cli("decode", *drafted, "verifier.revision=v3", "output=third")
    assert ended.status != 0
    assert ended.err.count("\n") == 1
    assert "verifier.revision='v3'" in ended.err
    # What reads the run again reads that state of the model.
    assert cli("record", "run=run", "output=recording").status == 0
    cache = Path(constants.HF_HUB_CACHE) / "models--somebody--model"
    (cache / "refs" / "main").write_text(COMMITS["v2"], encoding="utf-8")
    commit_of.cache_clear()  # as another process would ask
    ended = cli("record", "run=run", "output=again")
    assert "verifier.path='somebody/model': has changed since the run" in ended.err


@pytest.fixture(autouse=True)
def _elsewhere(empty_folder: Path) -> None:
    """Nothing is written into the checkout."""

"""Revisions of models on the Hub, read from a cache that was filled beforehand."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from specdec.core.errors import UserError
from specdec.lab.identity import commit_of
from specdec.lm.load import load
from specdec.lm.loadable import require_loadable
from specdec.results.run_dir import read_traces
from specdec.zoo import ZOO_FOLDER
from tests.support.running import CommandLine, Ended, Tiny

COMMITS = {"main": "a1" * 20, "v2": "b2" * 20}
NAME = "somebody/model"


@pytest.fixture
def hub(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cache with two states of one model, the verifier, and in v2 the draft; and of heads."""
    heads = (ZOO_FOLDER / "chained", ZOO_FOLDER / "medusa")
    for name, states in (("model", (tiny.verifier, tiny.draft)), ("heads", heads)):
        folder = tmp_path / f"models--somebody--{name}"
        for (ref, commit), model in zip(COMMITS.items(), states, strict=True):
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
    with pytest.raises(UserError, match=r"^revision=.*: expected a branch, a tag or a"):
        load(hub, revision=revision)


@pytest.mark.parametrize("path", ["zoo:verifier", None])
def test_a_folder_has_one_state(path: str | None, tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"^revision='v2': path=.* lies here"):
        load(path or str(tiny.verifier), revision="v2")


def test_a_run_is_known_by_the_commit(hub: str, tiny: Tiny, cli: CommandLine) -> None:
    options = tiny.options("run", f"verifier.path={hub}", f"draft.path={hub}", "tree.gamma=2")
    drafted = [*options, "proposer=draft_model", "draft.revision=v2"]
    ended = cli("decode", *drafted, "verifier.revision=main")
    assert ended.status == 0, ended.err
    provenance = facts_of("run")
    assert provenance["files"]["verifier.path"] == COMMITS["main"]
    assert provenance["files"]["draft.path"] == COMMITS["v2"]
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


def complaint(ended: Ended) -> str:
    return ended.err.removeprefix("error: ")


def facts_of(run: str) -> Any:
    return json.loads(Path(run, "provenance.json").read_text(encoding="utf-8"))


def test_a_commit_is_one_run_however_it_is_named(hub: str, tiny: Tiny, cli: CommandLine) -> None:
    options = tiny.options("run", f"verifier.path={hub}", "proposer=ngram")
    assert cli("decode", *options).status == 0
    written = Path("run/traces.jsonl").stat()
    for named in ("main", COMMITS["main"]):
        ended = cli("decode", *options, f"verifier.revision={named}")
        assert ended.status == 0, ended.err
        assert Path("run/traces.jsonl").stat() == written, "decoded anew"


def test_heads_have_revisions(hub: str, tiny: Tiny, cli: CommandLine) -> None:
    prompts = f"prompts.path={tiny.prompts}"
    options = ["proposer=medusa", "proposer.path=somebody/heads", "tree=sparse", prompts]
    options += ["prompts.limit=1", "max_new_tokens=8"]
    ended = cli("decode", *options, "proposer.revision=v2", "output=run")
    assert ended.status == 0, ended.err
    assert facts_of("run")["files"]["proposer.path"] == COMMITS["v2"]
    ended = cli("decode", *options, "output=main")
    assert complaint(ended).startswith("proposer.path='somebody/heads': no MedusaHeads (")
    ended = cli("decode", *options, "proposer.revision=v3", "output=third")
    assert complaint(ended).startswith(
        "proposer.path='somebody/heads': no MedusaHeads at proposer.revision='v3' ("
    )
    ended = cli("decode", "proposer=medusa", "proposer.revision=v2", prompts, "output=fourth")
    assert complaint(ended).startswith(
        "proposer.revision='v2': proposer.path='zoo:medusa' lies here"
    )
    assert ended.err.count("\n") == 1


@pytest.mark.thorough
def test_cards_name_the_commit_that_they_were_trained_on(
    hub: str, tiny: Tiny, cli: CommandLine
) -> None:
    data = [f"data.path={tiny.text}", f"data.held_out_path={tiny.text}", "max_steps=1"]
    data += ["data.max_length=32", "data.eval_samples=1", "evaluation.num_prompts=1"]
    trained = [f"verifier.path={hub}", "verifier.revision=v2", *data]
    ended = cli(
        "train", "train=medusa", *trained, "tree.gamma=1", "train.num_heads=1", "output=heads"
    )
    assert ended.status == 0, ended.err
    card = Path("heads/README.md").read_text(encoding="utf-8")
    assert f"base_model: {hub}" in card
    assert f"| `{hub}` | {COMMITS['v2']} |" in card
    assert f"verifier.path={hub} verifier.revision={COMMITS['v2']} proposer=medusa" in card
    start = [f"train.init_path={hub}", "train.revision=main"]
    ended = cli("train", "train=draft_model", *trained, *start, "output=draft")
    assert ended.status == 0, ended.err
    card = Path("draft/README.md").read_text(encoding="utf-8")
    assert f"# A draft model for `{hub}` at {COMMITS['v2']}\n" in card
    assert f"| started from | `{hub}` at {COMMITS['main']} |" in card
    # The same training, however its states are named.
    start[1] = f"train.revision={COMMITS['main']}"
    ended = cli("train", "train=draft_model", *trained, *start, "output=draft")
    assert ended.status == 0, ended.err
    ended = cli(
        "train", "train=draft_model", *trained, start[0], "train.revision=v2", "output=draft"
    )
    assert "train.init_path" in ended.err


@pytest.mark.thorough
def test_a_tokenizer_has_revisions(hub: str, tiny: Tiny, cli: CommandLine) -> None:
    data = [f"data.path={tiny.text}", f"data.held_out_path={tiny.text}", "max_steps=1"]
    data += ["train.block_length=16", "train.num_hidden_layers=1", "train.hidden_size=48"]
    shared = [*data, f"train.tokenizer_path={hub}"]
    ended = cli("train", "train=lm", *shared, "train.revision=v3", "output=model")
    assert complaint(ended).startswith(
        f"train.tokenizer_path={hub!r}: not loaded at train.revision='v3'"
    )
    ended = cli("train", "train=lm", *shared, "train.revision=v2", "output=model")
    assert ended.status == 0, ended.err
    card = Path("model/README.md").read_text(encoding="utf-8")
    assert f"| tokenizer of | `{hub}` at {COMMITS['v2']} |" in card
    ended = cli("train", "train=lm", *shared, f"train.init_path={hub}", "output=both")
    assert complaint(ended).startswith(f"train.tokenizer_path={hub!r}: expected null")
    ended = cli("train", "train=lm", *shared, "train.revision=3", "output=number")
    assert complaint(ended).startswith(
        "train.revision=3: expected a branch, a tag or a commit, in quotes"
    )
    ended = cli("train", "train=lm", *data, "train.revision=v2", "output=none")
    assert complaint(ended).startswith("train.revision='v2': expected train.init_path=MODEL or")


@pytest.fixture(autouse=True)
def _elsewhere(empty_folder: Path) -> None:
    """Nothing is written into the checkout."""

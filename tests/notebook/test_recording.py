"""A recording that Python makes, and what is replayed from it: the numbers of the commands."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import specdec
import specdec.notebook.record
from tests.support.running import CommandLine, Tiny

sd: Any = specdec
GAMMAS = (1, 2, 4)
SAMPLED = {"sampling": sd.Sampling(1.0), "max_new_tokens": 12}


@pytest.fixture(scope="module")
def verifier(tiny: Tiny) -> Any:
    return sd.load(tiny.verifier)


@pytest.fixture(scope="module")
def draft(tiny: Tiny) -> Any:
    return sd.load(tiny.draft)


@pytest.fixture(scope="module")
def recorded(verifier: Any, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded") / "texts"
    sd.record(verifier, sd.load_prompts(tiny.prompts), folder, **SAMPLED)
    return folder


def test_the_texts_are_those_that_are_generated(verifier: Any, recorded: Path, tiny: Tiny) -> None:
    again = sd.record(verifier, *_same(tiny, recorded), **SAMPLED)
    texts = {text.prompt_id: text for text in again.texts}
    traces = sd.generate(verifier, sd.NoProposer(), sd.load_prompts(tiny.prompts), **SAMPLED)
    for trace in traces:
        assert texts[trace.prompt_id].output_ids == trace.output_ids
        assert all(log_p < 0 for log_p in texts[trace.prompt_id].log_p)


def _same(tiny: Tiny, folder: Path) -> tuple[Any, ...]:
    return sd.load_prompts(tiny.prompts), folder


@pytest.mark.whole
def test_numbers_are_those_of_the_command(
    verifier: Any, draft: Any, cli: CommandLine, tiny: Tiny, empty_folder: Path
) -> None:
    sampled = ("sampling.temperature=1", "proposer=none")
    assert cli("record", *tiny.options("recording", *sampled)).status == 0
    grid = ("grid.gamma=[1,2,4]", "grid.verification=[rejection,block]")
    options = (f"draft.path={tiny.draft}", "output=replayed", *grid)
    replayed = cli("replay", "recording=recording", f'options=["{options[0]}"]', *options[1:])
    assert replayed.status == 0, replayed.err
    saved = pd.read_csv("replayed/summary.csv")["block_efficiency"]
    rules = {"rejection": sd.Rejection(), "block": sd.Block()}
    arms = {
        f"{rule} {gamma}": (sd.DraftModel(draft, sd.Chain(gamma)), rules[rule])
        for gamma in GAMMAS
        for rule in rules
    }
    found = sd.replay("recording", verifier, arms)
    for ours in found.table()["block_efficiency"]:
        assert any(ours == pytest.approx(theirs, abs=1e-9) for theirs in saved)
    assert not found.left_out


def test_of_a_recording_in_python_too(verifier: Any, draft: Any, recorded: Path) -> None:
    arms = {
        "chain": sd.DraftModel(draft, sd.Chain(2)),
        "dynamic": sd.DraftModel(draft, sd.Dynamic(num_nodes=4)),
        "ngram": sd.NGram(2),
        "match": (sd.DraftModel(draft, sd.Chain(2)), sd.Match()),
        "lossy": (sd.NGram(2), sd.Typical()),
    }
    found = sd.replay(recorded, verifier, arms, reference="chain")
    assert list(found.table().index) == ["chain", "dynamic", "ngram", "match"]
    assert "not lossless" in found.left_out["lossy"]
    assert (found.table()["block_efficiency"] >= 1).all()


def test_more_prompts_go_behind_those_that_are_there(
    verifier: Any, tiny: Tiny, tmp_path: Path
) -> None:
    """An interruption keeps what was written, and the same call resumes."""
    prompts, written = sd.load_prompts(tiny.prompts), tmp_path / "texts"
    whole = sd.record(verifier, prompts, tmp_path / "whole", **SAMPLED)
    score = specdec.notebook.record.score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specdec.notebook.record, "PROMPTS_AT_ONCE", 1)
        calls: list[int] = []

        def score_once(*given: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return score(*given)

        patch.setattr(specdec.notebook.record, "score", score_once)
        with pytest.raises(KeyboardInterrupt):
            sd.record(verifier, prompts, written, **SAMPLED)
        assert json.loads((written / "manifest.json").read_text())["num_texts"] == 2
        resumed = sd.record(verifier, prompts, written, **SAMPLED)
    tokens = [{text.key: text.output_ids for text in each.texts} for each in (resumed, whole)]
    assert tokens[0] == tokens[1]
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, "seed 1"),
        ({"sampling": sd.Sampling(0.5)}, "sampling.temperature"),
        ({"stop_strings": ["print"]}, "stop_strings"),
        ({"top_k": 8}, "top_k=64, not 8"),
    ],
)
def test_another_recording_is_refused(
    verifier: Any, tiny: Tiny, recorded: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(sd.UserError, match=said):
        sd.record(verifier, *_same(tiny, recorded), **SAMPLED | changed)


def test_other_prompts_are_another_recording(verifier: Any, recorded: Path) -> None:
    with pytest.raises(sd.UserError, match="source="):
        sd.record(verifier, ["def add("], recorded, **SAMPLED)


def test_another_verifier_is_refused(draft: Any, recorded: Path) -> None:
    with pytest.raises(sd.UserError, match="another verifier"):
        sd.replay(recorded, draft, {"ngram": sd.NGram(2)})


def test_where_nothing_can_be_replayed_it_is_said(verifier: Any, recorded: Path) -> None:
    with pytest.raises(sd.UserError, match="nothing to replay: Typical"):
        sd.replay(recorded, verifier, {"lossy": (sd.NGram(2), sd.Typical())})


@pytest.mark.whole
def test_the_command_says_whose_recording_it_is(
    cli: CommandLine, recorded: Path, empty_folder: Path
) -> None:
    ended = cli("replay", f"recording={recorded}")
    assert ended.status == 2
    assert "sd.replay" in ended.err
    assert len(ended.err.strip().splitlines()) == 1


def test_texts_of_unlike_lengths_have_numbers(verifier: Any, draft: Any, tmp_path: Path) -> None:
    """Behind the end of a short text nothing is drawn, and nothing of that is divided by."""
    given = {"sampling": sd.Sampling(1.0, top_k=20), "max_new_tokens": 10, "batch": 12}
    prompts = ["print(", "def add("] * 6
    recording = sd.record(verifier, prompts, tmp_path, stop_strings=["a", "e", "1"], **given)
    assert len({len(text.output_ids) for text in recording.texts}) > 1
    three = sd.DraftModel(draft, sd.Sampled([3], "without_replacement"))
    table = sd.replay(recording, verifier, {"three": three}).table()
    assert 1 <= table.loc["three", "block_efficiency"] <= 2


class Boost:
    """Adds to a logit."""

    def __init__(self, by: float):
        self.by = by

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        scores = scores.clone()
        scores[..., 7] += self.by
        return scores


def test_processors_of_ones_own_are_given_again(verifier: Any, tmp_path: Path) -> None:
    drawn = [sd.Sampling(1.0, processors=[Boost(by)]) for by in (1.0, 9.0)]
    given: dict[str, Any] = {"max_new_tokens": 6}
    sd.record(verifier, ["def add("], tmp_path, sampling=drawn[0], **given)
    with pytest.raises(sd.UserError, match="begun with other settings"):
        sd.record(verifier, ["def add("], tmp_path, sampling=drawn[1], **given)
    arms = {"ngram": sd.NGram(2)}
    assert len(sd.replay(tmp_path, verifier, arms, sampling=drawn[0]).table()) == 1
    with pytest.raises(sd.UserError, match="processors"):
        sd.replay(tmp_path, verifier, arms)


def test_a_model_is_not_recorded_into(verifier: Any, tiny: Tiny) -> None:
    before = sorted(path.name for path in tiny.verifier.iterdir())
    with pytest.raises(sd.UserError, match="of something else"):
        sd.record(verifier, ["def add("], tiny.verifier, max_new_tokens=2)
    assert sorted(path.name for path in tiny.verifier.iterdir()) == before
    with pytest.raises(sd.UserError, match="folder=''"):
        sd.record(verifier, ["def add("], "")


def test_drafts_of_another_vocabulary_are_not_replayed(
    verifier: Any, tiny: Tiny, recorded: Path
) -> None:
    stranger = sd.DraftModel(sd.load(tiny.stranger), sd.Chain(2))
    with pytest.raises(sd.UserError, match="vocabulary"):
        sd.replay(recorded, verifier, {"stranger": stranger})

"""Which runs are one arm, which arms are compared, and which runs are left out."""

from pathlib import Path
from typing import Any

import pytest

from specdec.core.errors import UserError
from specdec.report.collect import collect
from specdec.report.collection import Collection
from tests.support.fabricated import easy_traces, make_config, write_run, write_status
from tests.support.swept import write_replayed, write_trained


def labels(collection: Collection) -> dict[str, list[str]]:
    return {s.label: sorted(arm.label for arm in s.arms) for s in collection.settings}


def write(
    folder: Path, name: str, *args: Any, num_prompts: int = 6, provenance: Any = None, **more: Any
) -> Path:
    depth = 0 if args[0] == "none" else 4
    seed = more.get("seed", 0)
    traces = easy_traces(num_prompts, seed, depth)
    return write_run(folder / name, make_config(*args, **more), traces, provenance)


def test_seeds_are_pooled_and_arms_named_by_what_differs(tmp_path: Path) -> None:
    for seed in (0, 1):
        write(tmp_path, f"none-{seed}", "none", seed=seed)
        for gamma in (2, 4):
            write(tmp_path, f"draft-{gamma}-{seed}", "draft_model", gamma, seed=seed)
    collection = collect(tmp_path)
    # Only one arm has a tree and a rule at all, so both are said.
    assert labels(collection) == {
        "all": [
            "draft_model, chain, rejection, gamma=2",
            "draft_model, chain, rejection, gamma=4",
            "none",
        ]
    }
    (setting,) = collection.settings
    assert [sorted(arm.runs) for arm in setting.arms] == [[0, 1]] * 3
    assert {arm.tally.num_prompts for arm in setting.arms} == {6}
    (baseline,) = (arm for arm in setting.arms if arm.is_baseline)
    assert baseline.label == "none"
    assert baseline.tally.total("num_turns") == 12


def test_what_is_swept_for_its_own_sake_makes_settings(tmp_path: Path) -> None:
    for temperature in (0.0, 0.7):
        for batch in (1, 8):
            write(
                tmp_path, f"{temperature}-{batch}", "ngram", 4, temperature=temperature, batch=batch
            )
    collection = collect(tmp_path)
    assert set(labels(collection)) == {
        *("batch=1, temperature=0", "batch=8, temperature=0"),
        *("batch=1, temperature=0.7", "batch=8, temperature=0.7"),
    }
    assert collection.apart == {}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dtype", {"dtype": "bfloat16"}),
        ("content of verifier.path", {"provenance": {"files": {"verifier.path": "89ab"}}}),
        ("hardware", {"provenance": {"device": "another machine"}}),
        ("threads", {"provenance": {"num_threads": 7}}),
        ("content of prompts.path", {"provenance": {"files": {"prompts.path": "89ab"}}}),
    ],
)
def test_what_cannot_be_compared_is_kept_apart_unless_forced(
    tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    write(tmp_path, "none", "none")
    write(tmp_path, "draft", "draft_model", 4, **change)
    collection = collect(tmp_path)
    assert name in collection.apart
    assert not collection.forced
    assert [len(setting.arms) for setting in collection.settings] == [1, 1]
    forced = collect(tmp_path, force=True)
    assert forced.forced
    assert [len(setting.arms) for setting in forced.settings] == [2]
    assert name in forced.apart, "a table that was forced must say so"


def test_forced_arms_are_told_apart(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        write(tmp_path, dtype, "draft_model", 4, dtype=dtype)
    (setting,) = collect(tmp_path, force=True).settings
    assert {arm.label for arm in setting.arms} == {
        "draft_model, dtype=float32",
        "draft_model, dtype=bfloat16",
    }


def test_runs_that_are_not_complete_are_named_and_left_out(tmp_path: Path) -> None:
    write(tmp_path, "none", "none")
    for state in ("failed", "started", "interrupted"):
        write_status(write(tmp_path, state, "ngram", 4), state=state)
    collection = collect(tmp_path)
    assert labels(collection) == {"all": ["none"]}
    assert collection.incomplete == {
        "failed": "failed",
        "interrupted": "interrupted",
        "started": "interrupted",  # killed: nobody holds its lock
    }


def test_nothing_to_report_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run directory"):
        collect(tmp_path)
    with pytest.raises(UserError, match="no run directory"):
        collect(tmp_path / "missing")
    write_status(write(tmp_path, "ngram", "ngram", 4), state="failed")
    with pytest.raises(UserError, match="none of 1 runs is complete"):
        collect(tmp_path)


@pytest.mark.parametrize("file", ["config.yaml", "provenance.json", "summary.json", "tally.jsonl"])
@pytest.mark.parametrize("text", ["{", "[]", "a: [", "{}"])
def test_a_damaged_run_is_named(tmp_path: Path, file: str, text: str) -> None:
    path = write(tmp_path, "broken", "ngram", 4)
    (path / file).write_text(text)
    with pytest.raises(UserError, match=r"damaged|valid JSON|JSON object") as caught:
        collect(tmp_path)
    assert "broken" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_forced_arms_of_two_machines_have_two_names(tmp_path: Path) -> None:
    """All that follows uses these names."""
    for machine in ("small", "large"):
        write(tmp_path, machine, "ngram", 4, provenance={"device": machine})
    (setting,) = collect(tmp_path, force=True).settings
    assert sorted(arm.label for arm in setting.arms) == [
        "ngram, hardware=large",
        "ngram, hardware=small",
    ]


def test_trainings_are_known_by_tokens_and_keep_their_steps(tmp_path: Path) -> None:
    (setting,) = collect(write_trained(tmp_path)).settings
    assert [arm.label for arm in setting.arms] == ["medusa, tokens=194 k", "medusa, tokens=291 k"]
    assert [arm.options["training.max_steps"] for arm in setting.arms] == [400, 600]
    assert [arm.options["training.tokens"] for arm in setting.arms] == [194_131, 291_200]
    assert all("training.max_steps" not in arm.telling for arm in setting.arms)


def test_verifiers_that_were_tuned_have_names_of_six_digits(tmp_path: Path) -> None:
    collection = collect(write_trained(tmp_path, joint=True))
    assert set(labels(collection)) == {"verifier 194131", "verifier 291200"}


def test_replayed_runs_are_not_compared_with_decoded_ones(tmp_path: Path) -> None:
    write(write_replayed(tmp_path), "decoded", "ngram", 4)
    collection = collect(tmp_path)
    assert set(labels(collection)) == {"decoded", "replayed from recordings/mine"}
    assert collection.recordings == {("recordings/mine", ""): 3}

"""Arms are compared on what they have in common, and what is not resolved is called a tie."""

from dataclasses import replace
from pathlib import Path

import pytest

from specdec.core.trace import Step
from specdec.metrics import Tally, efficiency_contrast, holm, speedup
from specdec.metrics.speed import NO_CLOCK, TOO_CHEAP
from specdec.report.collect import collect
from specdec.report.collection import Setting
from specdec.report.comparison import Compared, compared
from tests.support.fabricated import easy_traces, make_config, plain_steps, write_run


def only(folder: Path) -> Setting:
    (setting,) = collect(folder).settings
    return setting


def by_label(rows: list[Compared]) -> dict[str, Compared]:
    return {row.arm.label: row for row in rows}


def write_arms(folder: Path, num_prompts: int = 30) -> dict[str, Tally]:
    """Write none, a bad arm, and two good ones that are much alike; return their sums."""
    traces = {
        "none": easy_traces(num_prompts, 0, depth=0),
        "2": easy_traces(num_prompts, 1, depth=2),
        "5": easy_traces(num_prompts, 2, depth=5),
        "6": easy_traces(num_prompts, 2, depth=6),
    }
    write_run(folder / "none", make_config("none"), traces["none"])
    for gamma in (2, 5, 6):
        write_run(folder / f"{gamma}", make_config("ngram", gamma), traces[str(gamma)])
    return {
        name: Tally.of(each, [plain_steps(trace, 1.01) for trace in each])
        for name, each in traces.items()
    }


def test_differences_are_paired_with_the_best(tmp_path: Path) -> None:
    tallies = write_arms(tmp_path)
    rows = by_label(compared(only(tmp_path)))
    (best,) = (row for row in rows.values() if row.summary["best"])
    assert "difference" not in best.summary
    assert best.summary["tie"] is None, "the best is not held to itself"
    name = best.arm.label.rpartition("=")[2]
    others = {label.rpartition("=")[2]: row for label, row in rows.items() if row is not best}
    contrasts = {own: efficiency_contrast(tallies[own], tallies[name]) for own in others}
    p_values = [contrast.p_value or 0.0 for contrast in contrasts.values()]
    adjusted = dict(zip(contrasts, holm(p_values), strict=True))
    for own, row in others.items():
        assert row.summary["reference"] == best.arm.label
        difference = row.summary["difference"]
        assert difference["value"] == contrasts[own].difference().value
        assert row.summary["p_value"] == pytest.approx(adjusted[own])
        assert row.summary["tie"] == (adjusted[own] >= 0.05)
        assert row.summary["tie"] == (difference["low"] <= 0 <= difference["high"])
        ratio = row.summary["ratio"]
        assert row.summary["tie"] == (ratio["low"] <= 1 <= ratio["high"])
    for label, row in rows.items():
        own = tallies[label.rpartition("=")[2]]
        assert row.summary["speedup"] == speedup(own).to_row()


def test_marks_and_intervals_agree_where_a_single_test_would_not(tmp_path: Path) -> None:
    """Of six arms some are resolved at 95 % alone, and not among six: their intervals hold 0."""
    for gamma in range(1, 7):
        traces = easy_traces(12, gamma, depth=4, num_steps=15)
        write_run(tmp_path / f"{gamma}", make_config("ngram", gamma), traces)
    rows = [row.summary for row in compared(only(tmp_path)) if "difference" in row.summary]
    assert len(rows) == 5
    for row in rows:
        assert row["tie"] == (row["difference"]["low"] <= 0 <= row["difference"]["high"])


def test_a_reference_can_be_named(tmp_path: Path) -> None:
    write_arms(tmp_path)
    rows = by_label(compared(only(tmp_path), "ngram, rejection, gamma=2"))
    references = {label: row.summary.get("reference") for label, row in rows.items()}
    assert references.pop("ngram, rejection, gamma=2") is None
    assert set(references.values()) == {"ngram, rejection, gamma=2"}


def test_what_others_are_held_to_is_not_tied_with_itself(tmp_path: Path) -> None:
    write_arms(tmp_path)
    rows = by_label(compared(only(tmp_path), "ngram, rejection, gamma=2"))
    assert rows["ngram, rejection, gamma=2"].summary["tie"] is None
    assert rows["none"].summary["tie"] is False
    assert sum(row.summary["best"] for row in rows.values()) == 1


def test_an_arm_is_tied_with_its_like(tmp_path: Path) -> None:
    for gamma in (3, 4):  # the very same texts
        write_run(tmp_path / f"{gamma}", make_config("ngram", gamma), easy_traces(9, 1))
    rows = compared(only(tmp_path))
    assert sorted([row.summary["tie"] for row in rows], key=str) == [None, True]
    assert sorted([row.summary["tie_in_speed"] for row in rows], key=str) == [None, True]
    differences = [row.summary.get("difference") for row in rows]
    assert {"value": 0.0, "low": 0.0, "high": 0.0, "n": 9} in differences


@pytest.mark.parametrize("num_prompts", [1, 2, 5, 6])
def test_few_prompts_have_values_and_nothing_else(tmp_path: Path, num_prompts: int) -> None:
    write_arms(tmp_path, num_prompts)
    rows = compared(only(tmp_path))
    few = num_prompts < 6
    assert any(row.summary["best"] for row in rows) != few
    assert any(row.summary["fastest"] for row in rows) != few
    for summary in (row.summary for row in rows):
        assert summary["block_efficiency"]["value"] is not None
        assert summary["speedup"]["value"] is not None
        assert (summary["block_efficiency"]["low"] is None) == few
        if few:
            assert summary["tie"] is summary["tie_in_speed"] is summary["p_value"] is None
            assert summary.get("difference", {"low": None})["low"] is None


# --- Speed ---


@pytest.mark.parametrize(("plain_step", "reason"), [(None, NO_CLOCK), (2.5, TOO_CHEAP)])
def test_speed_that_cannot_be_told_is_told_nowhere(
    tmp_path: Path, plain_step: float | None, reason: str
) -> None:
    """Not in a category either, and nothing is ranked by it: the honest arm is the fastest."""
    traces = easy_traces(30, 1, depth=5)
    write_run(tmp_path / "false", make_config("ngram", 5), traces, plain_step=plain_step)
    write_run(tmp_path / "honest", make_config("ngram", 2), easy_traces(30, 2, depth=2))
    write_run(tmp_path / "other", make_config("ngram", 3), easy_traces(30, 2, depth=2))
    rows = by_label(compared(only(tmp_path)))
    wrong = rows["ngram, gamma=5"]
    for name in ("speedup", "step_cost", "cost_ratio"):
        assert wrong.summary[name]["value"] is None
        assert wrong.summary[name]["reason"] == reason
    assert {each["speedup"].value for each in wrong.by_category.values()} == {None}
    assert wrong.summary["fastest"] is False
    assert wrong.summary["tie_in_speed"] is None
    assert wrong.summary["best"] is True, "tokens per call need no clock"
    assert sum(row.summary["fastest"] for row in rows.values()) == 1


def test_one_false_run_spoils_the_speed_of_its_arm(tmp_path: Path) -> None:
    """Pooled with honest seeds it would be called slow, and not false."""
    for seed, plain_step in ((0, 0.2), (1, 2.5)):
        config = make_config("ngram", 4, seed=seed)
        write_run(tmp_path / f"{seed}", config, easy_traces(30, seed), plain_step=plain_step)
    (row,) = compared(only(tmp_path))
    assert row.summary["speedup"]["reason"] == TOO_CHEAP


def test_arms_of_unlike_hours_are_compared_by_their_clocks(tmp_path: Path) -> None:
    """The same arm on a machine that was four times slower: as fast, whatever its seconds say."""
    traces = easy_traces(9, 1)
    slow = [replace(trace, steps=tuple(map(slower, trace.steps))) for trace in traces]
    write_run(tmp_path / "a", make_config("ngram", 4), traces, plain_step=1.0)
    write_run(tmp_path / "b", make_config("ngram", 5), slow, plain_step=4.0)
    one, two = compared(only(tmp_path))
    speeds = [row.summary["tokens_per_second"]["value"] for row in (one, two)]
    assert max(speeds) == pytest.approx(4 * min(speeds))
    assert one.summary["speedup"]["value"] == pytest.approx(two.summary["speedup"]["value"])
    assert True in (one.summary["tie_in_speed"], two.summary["tie_in_speed"])


def slower(step: Step) -> Step:
    names = ("propose_seconds", "verify_seconds", "other_seconds")
    return replace(step, **{name: 4 * getattr(step, name) for name in names})


def test_arms_are_compared_on_the_seeds_and_prompts_of_both(tmp_path: Path) -> None:
    for seed in (0, 1):
        traces = easy_traces(9, seed, depth=4)
        write_run(tmp_path / f"ngram-{seed}", make_config("ngram", 4, seed=seed), traces)
    none = easy_traces(6, 0, depth=0)
    write_run(tmp_path / "none", make_config("none", seed=1), none)
    rows = by_label(compared(only(tmp_path)))
    found = rows["ngram, rejection"].summary
    assert found["num_seeds"] == 2
    assert found["num_prompts"] == 9
    assert found["best"] is True
    assert rows["none"].summary["difference"]["n"] == 6, "of the one seed and six prompts of both"


def test_arms_without_a_common_prompt_have_no_difference(tmp_path: Path) -> None:
    write_run(tmp_path / "a", make_config("ngram", 4, seed=0), easy_traces(5, 0))
    write_run(tmp_path / "b", make_config("ngram", 2, seed=1), easy_traces(5, 0))
    rows = compared(only(tmp_path))
    assert all("difference" not in row.summary for row in rows)


def test_categories_are_parts_of_the_whole(tmp_path: Path) -> None:
    write_arms(tmp_path)
    for row in compared(only(tmp_path)):
        assert set(row.by_category) == {"code", "math", "text"}
        steps = [each["block_efficiency"].n for each in row.by_category.values()]
        assert sum(steps) == row.arm.tally.num_prompts
        values = [each["block_efficiency"].value or 0.0 for each in row.by_category.values()]
        whole = row.summary["block_efficiency"]["value"]
        assert min(values) <= whole <= max(values)
        code = row.by_category["code"]["speedup"]
        assert code.value == pytest.approx(row.summary["speedup"]["value"], rel=0.5)
        assert code.n == 10


def test_a_pooled_arm_is_lossless_if_all_of_its_runs_are(tmp_path: Path) -> None:
    for seed, lossless in ((0, True), (1, False)):
        config = make_config("ngram", 4, seed=seed)
        write_run(tmp_path / f"{seed}", config, easy_traces(5, seed), lossless=lossless)
    (row,) = compared(only(tmp_path))
    assert row.summary["lossless"] is False
    assert row.summary["peak_memory_bytes"] == 1 << 20


def test_a_category_is_what_the_arm_calls_it(tmp_path: Path) -> None:
    """Two files may call a prompt otherwise; only forced comparisons bring them together."""
    write_run(tmp_path / "ngram", make_config("ngram", 4), easy_traces(6, 0))
    plain = [replace(trace, category="any") for trace in easy_traces(6, 0, depth=0)]
    write_run(tmp_path / "none", make_config("none"), plain)
    row = by_label(compared(only(tmp_path)))["ngram, rejection"]
    assert set(row.by_category) == {"code", "math", "text"}
    assert {each["block_efficiency"].n for each in row.by_category.values()} == {2}
    assert {each["block_efficiency"].low for each in row.by_category.values()} == {None}


def test_prompts_with_other_turns_are_not_paired(tmp_path: Path) -> None:
    first = easy_traces(7, 0)
    write_run(tmp_path / "a", make_config("ngram", 4), first)
    write_run(tmp_path / "b", make_config("ngram", 2), [*first, replace(first[0], turn=1)])
    rows = compared(only(tmp_path))
    (found,) = (row.summary["difference"] for row in rows if "difference" in row.summary)
    assert found["n"] == 6

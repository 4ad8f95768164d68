"""Arms are compared on what they have in common, and what is not resolved is called a tie."""

from dataclasses import replace
from pathlib import Path

import pytest
from fabricated import easy_traces, make_config, write_run

from specdec.metrics import Tally, efficiency_difference, speedup
from specdec.report.collect import Setting, collect
from specdec.report.comparison import Compared, compared


def only(folder: Path) -> Setting:
    (setting,) = collect(folder).settings
    return setting


def by_label(rows: list[Compared]) -> dict[str, Compared]:
    return {row.arm.label: row for row in rows}


def write_arms(folder: Path, num_prompts: int = 30) -> dict[str, Tally]:
    """Write none, a good arm twice (other seeds), and a bad one."""
    traces = {
        "none": easy_traces(num_prompts, 0, depth=0),
        "2": easy_traces(num_prompts, 1, depth=2),
        "5": easy_traces(num_prompts, 2, depth=5),
        "6": easy_traces(num_prompts, 2, depth=6),
    }
    write_run(folder / "none", make_config("none"), traces["none"])
    for gamma in (2, 5, 6):
        write_run(folder / f"{gamma}", make_config("ngram", gamma), traces[str(gamma)])
    return {name: Tally.of(each) for name, each in traces.items()}


def test_differences_are_paired_with_the_best(tmp_path: Path) -> None:
    tallies = write_arms(tmp_path)
    rows = by_label(compared(only(tmp_path)))
    best = max(rows.values(), key=lambda row: row.summary["block_efficiency"]["value"])
    assert "difference" not in best.summary
    name = best.arm.label.rpartition("=")[2]
    for label, row in rows.items():
        if row is not best:
            own = tallies[label.rpartition("=")[2]]
            assert row.summary["reference"] == best.arm.label
            difference = efficiency_difference(own, tallies[name]).to_row()
            assert row.summary["difference"] == difference
        own = tallies[label.rpartition("=")[2]]
        assert row.summary["speedup"] == speedup(own, tallies["none"]).to_row()


def test_a_reference_can_be_named(tmp_path: Path) -> None:
    write_arms(tmp_path)
    rows = by_label(compared(only(tmp_path), "ngram, rejection, gamma=2"))
    references = {label: row.summary.get("reference") for label, row in rows.items()}
    assert references.pop("ngram, rejection, gamma=2") is None
    assert set(references.values()) == {"ngram, rejection, gamma=2"}


def test_ties_are_what_the_test_cannot_tell_from_the_best(tmp_path: Path) -> None:
    write_arms(tmp_path)
    rows = by_label(compared(only(tmp_path)))
    ties = {label for label, row in rows.items() if row.tie}
    assert "none" not in ties
    assert "ngram, rejection, gamma=2" not in ties
    assert ties, "the best is tied with itself"


def test_an_arm_is_tied_with_its_like(tmp_path: Path) -> None:
    for gamma in (3, 4):  # the very same texts
        write_run(tmp_path / f"{gamma}", make_config("ngram", gamma), easy_traces(9, 1))
    rows = compared(only(tmp_path))
    assert [row.tie for row in rows] == [True, True]
    differences = [row.summary.get("difference") for row in rows]
    assert {"value": 0.0, "low": 0.0, "high": 0.0, "n": 9} in differences


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
    expected = speedup(Tally.of(easy_traces(9, 1, depth=4)[:6]), Tally.of(none)).to_row()
    assert found["speedup"] == expected


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
        assert row.by_category["code"]["speedup"].value == pytest.approx(
            row.summary["speedup"]["value"], rel=0.5
        )


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
    assert {each["speedup"].n for each in row.by_category.values()} == {2}


def test_prompts_with_other_turns_are_not_paired(tmp_path: Path) -> None:
    first = easy_traces(6, 0)
    write_run(tmp_path / "a", make_config("ngram", 4), first)
    write_run(tmp_path / "b", make_config("ngram", 2), [*first, replace(first[0], turn=1)])
    rows = compared(only(tmp_path))
    (found,) = (row.summary["difference"] for row in rows if "difference" in row.summary)
    assert found["n"] == 5

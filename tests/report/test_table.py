"""The table at the end: numbers stay whole, and what is undefined is a dash."""

from typing import Any

import pytest

from specdec.metrics import DEFINITIONS, Tally, summarize
from specdec.report.cells import agreement, by_depth, estimate, losslessness
from specdec.report.table import SHOWN, TIE, ArmRow, broken, print_table, print_tables, too_few

UNDEFINED = {"value": None, "low": None, "high": None, "n": 0}
ONE_PROMPT = {"value": 1.25, "low": None, "high": None, "n": 1}
DIFFERENCE = {"value": 0.125, "low": -0.0625, "high": 0.3125, "n": 9}
KNOWN = {"value": 2.5, "low": 1.75, "high": 3.25, "n": 9}


def summary(**replaced: Any) -> dict[str, Any]:
    values = {
        "block_efficiency": KNOWN,
        "acceptance_rate": KNOWN,
        "acceptance_at_depth": {str(depth): KNOWN for depth in range(1, 4)},
        "tokens_per_second": {"value": 12345.6, "low": 11111.1, "high": 22222.2, "n": 9},
        "speedup": KNOWN,
        "expected_accepted": {"value": 1.4375, "low": 1.0, "high": 2.0, "n": 9},
        "overlap": KNOWN,
        "transport_bound": {"value": 0.8125, "low": 0.5, "high": 1.0, "n": 9},
        "total_variation": {"value": 0.0819, "low": 0.0625, "high": 0.125, "n": 9},
        "experts_touched": KNOWN,
        "regret": DIFFERENCE,
        "kl": {"value": 0.2049, "low": 0.125, "high": 0.25, "n": 9},
        "judged": {"block": {"expected_accepted": KNOWN, "difference": DIFFERENCE}},
        "reference": "none",
        "difference": DIFFERENCE,
        "ratio": KNOWN,
        "lossless": True,
        "same_text": {"equal": 9, "of": 9},
    }
    return values | replaced


@pytest.mark.parametrize(
    ("row", "shown"), [(None, "-"), (UNDEFINED, "-"), (ONE_PROMPT, "1.25")], ids=str
)
def test_what_is_undefined_is_a_dash(row: dict[str, Any] | None, shown: str) -> None:
    assert estimate(row) == shown


def test_an_estimate_shows_its_interval() -> None:
    shown = estimate(KNOWN)
    assert shown.startswith("2.50")
    assert "1.75-3.25" in shown


def test_depths_without_a_number_are_left_out() -> None:
    assert by_depth({}) == "-"
    assert by_depth({"1": ONE_PROMPT, "2": UNDEFINED}) == "1: 1.25"


def test_agreement_is_counted() -> None:
    assert agreement({"equal": 3, "of": 3}) == "yes"
    assert agreement({"equal": 2, "of": 3}) == "no: 2 of 3"
    assert agreement(None) == "-", "at temperature 1 two samples may well differ"


@pytest.mark.parametrize("columns", ["20", "80", "200"])
def test_numbers_do_not_break_on_any_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    rows = [
        ArmRow("draft_model,tree.gamma=6", "rejection", summary()),
        ArmRow("none", "rejection", summary(speedup=None, acceptance_rate=None, lossless=False)),
    ]
    print_table(rows, "9 prompts")
    shown = capsys.readouterr().out
    for text in ("9 prompts", "draft_model,tree.gamma=6", "rejection", "12345.6", "2.50"):
        assert text in shown, f"{text} is broken or missing:\n{shown}"
    assert "11111.1-22222.2" in shown
    assert "\x1b" not in shown, "colours in a file"


def test_a_difference_shows_its_sign() -> None:
    """0.125-0.0625 to 0.3125 would read like an interval without an end."""
    shown = estimate(DIFFERENCE, signed=True)
    assert shown.startswith("+0.12")
    assert "-0.06 to +0.31" in shown


def test_a_lossy_arm_says_how_far_it_strays() -> None:
    assert losslessness(summary()) == "yes"
    assert losslessness(summary(lossless=False)) == "no: TV 0.082, KL 0.20"
    unknown = summary(lossless=False, total_variation=None, kl=None)
    assert losslessness(unknown) == "no", "a rule may not know how far it strays"


def printed(capsys: pytest.CaptureFixture[str], *rows: ArmRow) -> str:
    print_table(rows, "title")
    return " ".join(capsys.readouterr().out.split())


def test_expected_acceptance_and_its_bound_stand_beside_what_was_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = printed(capsys, ArmRow("mine", "rejection", summary()))
    assert "E[A] 1.44" in shown
    assert "bound 0.81" in shown
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 9}
    row = ArmRow("none", "rejection", summary(expected_accepted=nothing, num_drafted=0))
    assert "E[A] 0.00" not in printed(capsys, row), "nothing is drafted, nothing expected"
    row = ArmRow("mine", "rejection", summary(expected_accepted=nothing, num_drafted=40))
    assert "E[A] 0.00" in printed(capsys, row), "nothing of it is ever accepted"
    row = ArmRow("mine", "rejection", summary(expected_accepted=UNDEFINED, judged={}))
    assert "E[A]" not in printed(capsys, row).partition("Intervals")[0], "the rule does not say"


def test_an_unknown_expectation_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    judged = {"block": {"expected_accepted": UNDEFINED, "difference": UNDEFINED}}
    shown = printed(
        capsys, ArmRow("a", "mine", summary(expected_accepted=UNDEFINED, judged=judged))
    )
    assert "mine (decides) - -" in shown
    assert "block - -" in shown


def test_why_there_is_no_speedup_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "timings not comparable: of another hour"
    row = {**UNDEFINED, "reason": reason}
    shown = printed(capsys, *(ArmRow(name, "rejection", summary(speedup=row)) for name in "ab"))
    assert shown.count("timings not comparable") == 3
    assert shown.count(reason) == 1


def test_ties_are_marked_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    row = ArmRow("a", "rejection", summary(tie=True, tie_in_speed=True))
    shown = printed(capsys, row)
    assert shown.count("2.50 =") == 2
    assert " ".join(TIE.split()) in shown
    shown = printed(capsys, ArmRow("a", "rejection", summary(tie=False, tie_in_speed=None)))
    assert "2.50 =" not in shown
    assert TIE not in shown


OPTIONAL = {
    "difference": "to reference",
    "acceptance_rate": "rate",
    "transport_bound": "overlap",
    "speedup": "speedup",
    "same_text": "same text",
}


@pytest.mark.parametrize(("metric", "title"), OPTIONAL.items())
def test_a_column_that_no_arm_fills_is_left_out(
    capsys: pytest.CaptureFixture[str], metric: str, title: str
) -> None:
    """And with it what its metrics mean; one arm that fills it brings it back."""
    empty = ArmRow("empty", "rejection", summary(**{metric: None}, judged={}))
    shown = printed(capsys, empty)
    assert title not in shown.split("Intervals:")[0]
    assert f"{metric}: " not in shown
    shown = printed(capsys, empty, ArmRow("full", "rejection", summary()))
    assert title in shown.split("Intervals:")[0]


def test_judges_have_a_table_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, ArmRow("mine", "rejection", summary()))
    assert "the same candidates, shown to other rules" in shown
    assert "block 2.500 (1.750-3.250) +0.125 (-0.062 to +0.312)" in shown
    assert "rejection (decides) 1.438" in shown
    shown = printed(capsys, ArmRow("mine", "rejection", summary(judged={})))
    assert "shown to other rules" not in shown


def test_the_reference_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [ArmRow(name, "rejection", summary()) for name in "ab"]
    assert printed(capsys, *rows).count("reference arm: none") == 1


def test_long_names_break_between_overrides() -> None:
    assert broken("draft_model,tree.gamma=6") == "draft_model,tree.gamma=6"
    name = "sampled,tree.widths=2-2-1,tree.draw=without_replacement,traversal"
    lines = broken(name).split("\n")
    assert "".join(lines) == name
    assert lines[0] == "sampled,tree.widths=2-2-1,"
    assert all("=" in line for line in lines[:-1])


def test_every_definition_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, ArmRow("none", "rejection", summary()))
    for name in SHOWN:
        assert f"{name}: {DEFINITIONS[name]}" in shown


def test_a_summary_of_nothing_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    summary = {**summarize(Tally.of([])), "lossless": True}
    print_table([ArmRow("none", "rejection", summary)], "0 prompts")
    assert "none" in capsys.readouterr().out


def test_definitions_are_left_out_where_a_page_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    print_tables({"title": [ArmRow("none", "rejection", summary())]}, explained=False)
    shown = capsys.readouterr().out
    assert "Intervals: 95 %" in shown
    assert not [name for name in SHOWN if f"{name}: " in shown]


@pytest.mark.parametrize(
    ("numbers", "note"),
    [
        ((6, 480), None),
        ((), None),
        ((1, 1), "n = 1 prompt: "),
        ((3, 480), "n = 3 prompts: "),
        ((5, 2, 9), "n = 2 to 5 prompts: "),
    ],
)
def test_too_few_prompts_are_counted(
    capsys: pytest.CaptureFixture[str], numbers: tuple[int, ...], note: str | None
) -> None:
    found = too_few([{"num_prompts": number} for number in numbers])
    reason = (
        "too few to resolve differences (fewer than 6 have no intervals, no tests and no marks)"
    )
    assert found == (None if note is None else note + reason)
    rows = [ArmRow("mine", "rejection", summary(num_prompts=number)) for number in numbers]
    if rows:
        assert ("too few" in printed(capsys, *rows)) == (note is not None)

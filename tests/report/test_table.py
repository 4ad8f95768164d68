"""The table at the end: numbers stay whole, and what is undefined is a dash."""

from typing import Any

import pytest

from specdec.metrics import DEFINITIONS, summarize
from specdec.report.table import SHOWN, Row, agreement, by_depth, estimate, print_table

UNDEFINED = {"value": None, "low": None, "high": None, "n": 0}
ONE_PROMPT = {"value": 1.25, "low": None, "high": None, "n": 1}
KNOWN = {"value": 2.5, "low": 1.75, "high": 3.25, "n": 9}


def summary(**replaced: Any) -> dict[str, Any]:
    values = {
        "block_efficiency": KNOWN,
        "acceptance_rate": KNOWN,
        "acceptance_at_depth": {str(depth): KNOWN for depth in range(1, 4)},
        "tokens_per_second": {"value": 12345.6, "low": 11111.1, "high": 22222.2, "n": 9},
        "speedup": KNOWN,
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
def test_numbers_do_not_break_on_any_terminal(capsys, monkeypatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    rows = [
        Row("draft_model,tree.gamma=6", "rejection", summary()),
        Row("none", "rejection", summary(speedup=None, acceptance_rate=None, lossless=False)),
    ]
    print_table(rows, "9 prompts")
    shown = capsys.readouterr().out
    for text in ("9 prompts", "draft_model,tree.gamma=6", "rejection", "12345.6", "2.50"):
        assert text in shown, f"{text} is broken or missing:\n{shown}"
    assert "11111.1-22222.2" in shown
    assert "\x1b" not in shown, "colours in a file"


def test_every_definition_is_printed(capsys) -> None:
    print_table([Row("none", "rejection", summary())], "title")
    shown = " ".join(capsys.readouterr().out.split())
    for name in SHOWN:
        assert f"{name}: {DEFINITIONS[name]}" in shown


def test_a_summary_of_nothing_can_be_shown(capsys) -> None:
    print_table([Row("none", "rejection", {**summarize([]), "lossless": True})], "0 prompts")
    assert "none" in capsys.readouterr().out

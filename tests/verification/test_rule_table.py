"""The documentation's table of rules says what the rules themselves say."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from specdec.core.values import Draw

ROOT = Path(__file__).parents[2]
STEMS = sorted(path.stem for path in (ROOT / "configs" / "verification").glob("*.yaml"))
ALL = frozenset(Draw)


def rows() -> dict[str, list[str]]:
    """Read the table whose first column is headed `verification=`."""
    text = (ROOT / "docs" / "trees-and-rules.md").read_text(encoding="utf-8")
    found = re.search(r"^\| `verification=` \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert found is not None, "docs/trees-and-rules.md has no table of rules"
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found[1].splitlines()]
    return {line[0].strip("`"): line[1:] for line in lines}


def rule(stem: str) -> Any:
    node = yaml.safe_load((ROOT / "configs" / "verification" / f"{stem}.yaml").read_text())["rule"]
    module, name = node.pop("_target_").rsplit(".", 1)
    return getattr(import_module(module), name)(**node)


def draws(cell: str) -> frozenset[Draw]:
    return ALL if cell == "all" else frozenset(Draw(name) for name in cell.split(", "))


def test_every_rule_is_in_the_table() -> None:
    assert sorted(rows()) == STEMS


@pytest.mark.parametrize("stem", STEMS)
def test_the_table_says_what_the_rule_says(stem: str) -> None:
    defined, needs_q, lossless, paper = rows()[stem]
    found = rule(stem)
    assert draws(defined) == found.defined_for
    assert needs_q == ("yes" if found.needs_q else "no")
    assert lossless == ("yes" if found.lossless_for == found.defined_for else "no")
    assert found.lossless_for in (frozenset(), found.defined_for), "the table has no word for it"
    assert paper

"""A summary as plain numbers under flat names, as tables and trackers want them."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

Frame = pd.DataFrame
ENDINGS = {"value": "", "low": "_low", "high": "_high", "n": "_n"}


def flat(summary: Mapping[str, Any]) -> dict[str, float | int]:
    """Return every number of a summary that there is, intervals as `_low`, `_high` and `_n`.

    What stands below a depth, a part or a judge has their names in its own:
    `acceptance_at_depth_2_low`.
    """
    return dict(_flat(summary, ""))


def _flat(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float | int]]:
    if node.keys() >= ENDINGS.keys():
        named = {f"{prefix}{ending}": node[part] for part, ending in ENDINGS.items()}
    else:
        named = {f"{prefix}_{name}" if prefix else name: value for name, value in node.items()}
    for name, value in named.items():
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def by_arm(summaries: Mapping[str, Mapping[str, Any]]) -> Frame:
    """Return a row for each arm of summaries by name, and a column for each number."""
    rows = [{"arm": name, **flat(each)} for name, each in summaries.items()]
    return pd.DataFrame(rows).set_index("arm") if rows else pd.DataFrame()

"""The file of `specdec-costs`: written with a checksum, and believed only as far as it can be."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specdec.core.errors import UserError
from specdec.core.jsonl import unsealed
from specdec.core.vouching import write_note
from specdec.replaying.costs import LEAST_FACTOR, PLAIN, Costs, DraftCosts
from specdec.replaying.curves import Curve
from specdec.replaying.forwards import Forwards

VERSION = 3


def write_costs(costs: Costs, path: Path) -> None:
    """Write a file that `read_costs` reads."""
    drafts = {name: asdict(draft) for name, draft in costs.drafts.items()}
    row = {"version": VERSION, "circumstances": costs.circumstances}
    write_note(path, {**row, "forwards": costs.forwards.to_row(), "drafts": drafts})


def read_costs(path: Path) -> Costs:
    """Read what `specdec-costs` wrote.

    Raises:
        UserError: the file is missing, damaged or of another version.
    """
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        if row["version"] != VERSION:
            raise ValueError(f"version {row['version']}, and this reads version {VERSION}")
        drafts = {name: _draft(each) for name, each in row["drafts"].items()}
        costs = Costs(row["circumstances"], Forwards.of_row(row["forwards"]), drafts)
        _require_possible(costs)
        unsealed(row)
        return costs
    except OSError as error:
        raise UserError(f"costs={str(path)!r}: cannot be read ({error.strerror})") from None
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"costs={str(path)!r}: not what specdec-costs writes ({what}); measure anew"
        ) from None


def _require_possible(costs: Costs) -> None:
    """Refuse seconds that no machine takes.

    Raises:
        ValueError: a number is below 0 or none at all, or steps without candidates are missing.
    """
    curves: dict[str, Curve] = {}
    if PLAIN not in [draft.name for draft in costs.drafts.values()]:
        raise ValueError("nothing about plain steps")
    for draft in costs.drafts.values():
        name = draft.name
        curves |= {f"{name}: a level, {choice}": curve for choice, curve in draft.level.items()}
        curves[f"{name}: the rest of a step"] = draft.other
        if draft.growth is not None:
            curves[f"{name}: a token of its model"] = draft.growth
        numbers = {"start": draft.start, "verify": draft.verify, "context": draft.context}
        for part, number in numbers.items():
            if not 0 <= number < math.inf:
                raise ValueError(f"{name}: {part} {number}")
        if draft.verify < LEAST_FACTOR:
            raise ValueError(f"{name}: verify {draft.verify}, expected {LEAST_FACTOR} at least")
    for name, curve in curves.items():
        if not all(0 <= each < math.inf for each in curve.seconds):
            raise ValueError(f"{name}: seconds below 0")


def _curve(row: Mapping[str, Any]) -> Curve:
    return Curve(tuple(map(int, row["sizes"])), tuple(map(float, row["seconds"])))


def _draft(row: Mapping[str, Any]) -> DraftCosts:
    return DraftCosts(
        str(row["name"]),
        float(row["start"]),
        {name: _curve(each) for name, each in row["level"].items()},
        float(row["verify"]),
        _curve(row["other"]),
        None if row["growth"] is None else _curve(row["growth"]),
        float(row["context"]),
    )


def costs_of_file(where: str, fingerprint: Mapping[str, str]) -> Costs:
    """Read what one verifier costs; other weights of the same shape cost the same.

    Raises:
        UserError: the file is no such file, or about another configuration or another dtype.
    """
    costs = read_costs(Path(where))
    theirs = costs.circumstances["verifier"]
    unlike = [name for name in ("config", "dtype") if theirs.get(name) != fingerprint[name]]
    if unlike:
        raise UserError(
            f"costs={where!r}: measured on another verifier, {theirs.get('path')!r}"
            f" ({', '.join(unlike)} differ); measure this one with specdec-costs"
        )
    return costs

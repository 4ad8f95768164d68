"""What refactors must not change: `make traces` runs toys and compares them with tests/traces.txt.

A line is the name of a case and what came of it. `traces:...` and `summary:...` are hashes: equal
or not. `tau=1.23` and the like are numbers, of what is computed in float32, and equal up to 1e-4,
so that no other processor is mistaken for a change. `make traces UPDATE=1` writes the file anew;
say in LOG.md which lines changed, and why.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from specdec.metrics.summary import summarize
from tests.support.running import write_tiny
from tests.support.toy_commands import Counted, ToyCommands
from tests.support.toy_traces import Decoded, ToyTraces

STORED = Path(__file__).with_suffix(".txt")
CLOSE = 1e-4
Lines = Mapping[str, str]  # what came of each case, by its name


def main() -> int:
    """Compare or write; returns 1 if something changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help=f"write {STORED.name} anew")
    update = parser.parse_args().update
    with TemporaryDirectory() as folder:
        found = run(Path(folder))
    if update:
        STORED.write_text("".join(f"{name} | {came}\n" for name, came in found.items()))
        return 0
    changes = differences(read(STORED), found)
    print(*changes, f"{len(found)} lines, {len(changes)} of them changed", sep="\n")
    return int(bool(changes))


def run(folder: Path) -> Lines:
    """Run all cases; what they write goes into an empty folder."""
    with chdir(folder):
        lines = [decoded_line(case) for case in ToyTraces(folder).cases()]
        lines += [counted_line(case) for case in ToyCommands(write_tiny(folder)).cases()]
    found = dict(lines)
    assert len(found) == len(lines), "two cases have one name"
    return found


def read(path: Path) -> Lines:
    """Read what was stored."""
    lines = (line.split(" | ") for line in path.read_text(encoding="utf-8").splitlines())
    return {name: came for name, came in lines}


def decoded_line(case: Decoded) -> tuple[str, str]:
    """Hash texts and what they come to."""
    summary = summarize(case.traces)
    traces = hashed([trace.to_row() for trace in case.traces])
    tau = summary["block_efficiency"]["value"]
    return case.name, f"traces:{traces} summary:{hashed(summary)} tau={tau:.6g}"


def counted_line(case: Counted) -> tuple[str, str]:
    """Show numbers."""
    return case.name, " ".join(f"{name}={value:.6g}" for name, value in case.numbers.items())


def hashed(value: Any) -> str:
    """Hash plain values; numbers count with six digits."""
    return hashlib.sha256(json.dumps(canonical(value)).encode()).hexdigest()[:12]


def canonical(value: Any) -> Any:
    """Round numbers, without the sign of zero; sort keys."""
    if isinstance(value, float):
        return f"{value + 0.0:.6g}"
    if isinstance(value, Mapping):
        return {str(key): canonical(each) for key, each in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [canonical(each) for each in value]
    return value


def differences(stored: Lines, found: Lines) -> list[str]:
    """Say of every line that is new, gone or changed what it was and is."""
    said: list[str] = []
    for name in dict.fromkeys([*stored, *found]):
        if name not in found:
            said.append(f"gone: {name}")
        elif name not in stored:
            said.append(f"new: {name} | {found[name]}")
        elif not same(stored[name], found[name]):
            said.append(f"changed: {name}\n  was {stored[name]}\n  is  {found[name]}")
    return said


def same(stored: str, found: str) -> bool:
    """Whether two lines agree: words to the letter, numbers up to rounding."""
    old, new = dict(fields(stored)), dict(fields(found))
    return old.keys() == new.keys() and all(agree(old[name], new[name]) for name in old)


def fields(came: str) -> Iterator[tuple[str, str]]:
    """Split `name=number` and `word` of a line."""
    for field in came.split():
        name, is_number, value = field.partition("=")
        yield (name, value) if is_number else (field, "")


def agree(old: str, new: str) -> bool:
    """Whether two values are equal, or are numbers and close."""
    return old == new or math.isclose(float(old), float(new), rel_tol=CLOSE, abs_tol=CLOSE / 10)


if __name__ == "__main__":
    sys.exit(main())

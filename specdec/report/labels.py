"""What runs, arms and settings are called: what tells them apart, in few words."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from specdec.results.options import PLUG_INS

STEPS, TOKENS = "training.max_steps", "training.tokens"  # of which tokens tell more
CONTENT = "content of "  # a digest of the files that an option names
RECORDING = "recording"  # that was replayed; none where tokens were decoded
COSTS = (
    "costs"  # that seconds were predicted from; none where they were measured, or there are none
)
DIGITS_OF_A_DIGEST = 6  # enough to tell a few files apart
EXACT_BELOW = 10_000  # larger counts are rounded to three digits
UNITS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def part(name: str, value: Any) -> str:
    """Say an option in few words: the name of a plug-in, else `gamma=4`."""
    if name.startswith(CONTENT):
        return f"{name.removeprefix(CONTENT).partition('.')[0]} {readable(name, value)}"
    if name == RECORDING:
        return "decoded" if value is None else f"replayed from {value}"
    if name == COSTS:
        return "no predicted seconds" if value is None else f"seconds predicted from {value}"
    return str(value) if name in PLUG_INS else f"{name.rpartition('.')[2]}={value}"


def readable(name: str, value: object) -> object:
    """Return the first digits of a digest, and everything else as it is."""
    if not name.startswith(CONTENT):
        return value
    return "unknown" if value is None else str(value)[:DIGITS_OF_A_DIGEST]


def rounded(number: float) -> str:
    """Write a large number in three digits: 194 k."""
    if abs(number) < EXACT_BELOW:
        return f"{number:.6g}"
    near = float(f"{number:.3g}")
    unit, size = max((each for each in UNITS.items() if abs(near) >= each[1]), key=lambda u: u[1])
    return f"{near / size:.3g} {unit}"


def rounded_apart(numbers: Sequence[float]) -> list[str]:
    """Round large numbers, unless two that differ would then look alike."""
    short = [rounded(number) for number in numbers]
    if len(set(short)) == len(set(numbers)):
        return short
    return [
        f"{number:.6g}" if abs(number) < EXACT_BELOW else f"{number:.15g}" for number in numbers
    ]


def with_short_counts(
    tables: Sequence[Mapping[str, Any]], counts: Iterable[int] = ()
) -> list[dict[str, Any]]:
    """Round training tokens in three digits, if they and further `counts` remain distinct."""
    known = sorted({table[TOKENS] for table in tables if TOKENS in table} | set(counts))
    short = dict(zip(known, rounded_apart(known), strict=True))
    return [
        {**table, TOKENS: short[table[TOKENS]]} if TOKENS in table else dict(table)
        for table in tables
    ]


def distinct_labels(arms: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Say what arms do not share; where files are, only if nothing else tells them apart.

    Of steps and tokens of a training the tokens are enough.
    """
    brief = [name for name in names if not name.endswith(".path")]
    found: list[str] = []
    for some, with_steps in ((brief, False), (names, False), (names, True)):
        found = [
            ", ".join(
                part(n, options[n])
                for n in some
                if n in options and (n != STEPS or with_steps or TOKENS not in options)
            )
            for options in arms
        ]
        if len(set(found)) == len(arms):
            break
    return found

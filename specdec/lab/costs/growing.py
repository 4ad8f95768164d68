"""How forwards grow with context, tokens and requests: lines, and whether one is steeper than x."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import log
from pathlib import Path

from specdec.core.errors import UserError
from specdec.lab.costs.forward_grid import ForwardGrid
from specdec.replaying.forwards import Forwards, Shape
from specdec.report.plots import Plot, save
from specdec.report.plots.growth import Axis, Series, growth

STEEP = 1.05  # an exponent beyond this is more than proportional, and more than noise


def by_context(forwards: Forwards) -> list[Series]:
    """Return a line over the context for every number of tokens."""
    groups: dict[tuple[bool, int], dict[int, float]] = {}
    for each in forwards.points:
        branches, number, context = each.shape
        groups.setdefault((branches, number), {})[context] = each.seconds
    return [
        _series(f"{_kind(branches)} of {number}", found)
        for (branches, number), found in sorted(groups.items())
    ]


def by_tokens(forwards: Forwards) -> list[Series]:
    """Return a line over the tokens for every context."""
    groups: dict[tuple[bool, int], dict[int, float]] = {}
    for each in forwards.points:
        branches, number, context = each.shape
        groups.setdefault((branches, context), {})[number] = each.seconds
    return [
        _series(f"{_kind(branches)}, context {context}", found)
        for (branches, context), found in sorted(groups.items())
    ]


def by_batch(several: Sequence[Forwards]) -> list[Series]:
    """Return lines over the requests, of one token and of the most, at all common contexts."""
    seconds = {each.batch: {p.shape: p.seconds for p in each.points} for each in several}
    common = set[Shape].intersection(*(set(found) for found in seconds.values()))
    sizes = {shape.num_tokens for shape in common}
    shown = sorted(shape for shape in common if shape.num_tokens in (min(sizes), max(sizes)))
    return [
        _series(
            f"{_kind(shape.branches)} of {shape.num_tokens}, context {shape.context}",
            {batch: found[shape] for batch, found in seconds.items()},
        )
        for shape in shown
    ]


def require_comparable(grid: ForwardGrid, beside: Mapping[str, Forwards]) -> None:
    """Refuse files that growth with the batch cannot be read off, beside what is to be timed.

    Raises:
        UserError: two are of one batch, or no shape is in all of them.
    """
    batches, common = {grid.batch}, set(grid.shapes)
    for where, each in beside.items():
        if each.batch in batches:
            raise UserError(f"beside={where!r}: batch={each.batch} again; expected unlike batches")
        batches.add(each.batch)
        common &= {point.shape for point in each.points}
        if not common:
            raise UserError(f"beside={where!r}: expected a file of the same tokens and contexts")


def _kind(branches: bool) -> str:
    return "tree" if branches else "chain"


def _series(label: str, seconds: dict[int, float]) -> Series:
    sizes = sorted(seconds)
    return Series(label, sizes, [1e3 * seconds[size] for size in sizes])


def exponents(line: Series) -> Iterator[tuple[float, float, float]]:
    """Yield the exponent e between neighbours, with both: seconds grow there as x ** e."""
    for (low, before), (high, after) in pairwise(zip(line.x, line.milliseconds, strict=True)):
        yield log(after / before) / log(high / low), low, high


def growth_said(what: str, lines: Sequence[Series]) -> str:
    """Say in a line how steep the steepest line is, or which are steeper than x, and which bend.

    A constant hides what grows below it, so the last stretch of a line is also held to the rest.
    """
    found = [(*each, line.label) for line in lines for each in exponents(line)]
    if not found:
        return f"growth with {what}: only one was timed"
    steep = sorted((each for each in found if each[0] > STEEP), reverse=True)
    listed = "; ".join(
        f"{label}: {low:g} to {high:g}, exponent {exponent:.2f}"
        for exponent, low, high, label in (steep or [max(found)])[:4]
    )
    verdict = "FASTER THAN LINEAR" if steep else "never faster than linear; the steepest"
    return f"growth with {what}: {verdict} ({listed}){_bend_said(lines)}"


def _bend_said(lines: Sequence[Series]) -> str:
    """Name the line whose last stretch adds most for each x, beside what is added before it."""
    bends = [(*stretches(line), line) for line in lines if len(line.x) > 2]
    rising = [each for each in bends if each[0] > max(0.0, each[1])]
    if not rising:
        return "" if not bends else "; no line bends upwards"
    last, before, line = max(rising, key=lambda each: each[0] / max(each[1], 1e-12))
    low, high = line.x[-2:]
    return (
        f"; {line.label} bends upwards most: {last:.4f} ms for each from {low:g} to {high:g},"
        f" {before:.4f} before"
    )


def stretches(line: Series) -> tuple[float, float]:
    """Return the milliseconds for each x of the last stretch, and of all before it."""
    (first, *_, low, high), (least, *_, before, last) = line.x, line.milliseconds
    return (last - before) / (high - low), (before - least) / (low - first)


def draw(forwards: Forwards, beside: Sequence[Forwards], output: Path, about: str) -> list[Path]:
    """Draw growth beside a file of costs; returns what was written: SVG and PNG of each plot."""
    stem, caption = output.stem, f"Medians of forwards of the verifier, {about}."
    batch = Axis(f"{stem}_by_batch", "batch (requests)", "A forward over requests in flight")
    axes = [
        (Axis(f"{stem}_by_context", "context (tokens)", "A forward over the context"), by_context),
        (Axis(f"{stem}_by_tokens", "new tokens", "A forward over its tokens"), by_tokens),
    ]
    plots: dict[str, Plot] = {}
    for axis, lines in axes:
        plots |= growth(axis, lines(forwards), caption)
    if beside:
        plots |= growth(batch, by_batch([forwards, *beside]), caption)
    return save(plots, output.parent)

"""The tables of `specdec-costs`: forwards over tokens and context, proposers, and growth."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from specdec.lab.costs.growing import by_batch, by_context, by_tokens, growth_said
from specdec.replaying.costs import Costs
from specdec.replaying.curves import Curve
from specdec.replaying.forwards import Forwards


def show(costs: Costs, beside: Sequence[Forwards]) -> None:
    """Print all of it; `beside` are forwards of other batches."""
    forwards = costs.forwards
    tables = [_table(forwards, branches) for branches in (False, True)]
    console = Console()
    # Cut-off numbers are worse than broken lines; pipes and files claim to be 80 wide.
    whole = console.options.update(max_width=1000)
    needed = max(console.measure(table, options=whole).maximum for table in tables)
    console = Console(width=max(needed, console.width))
    for kind, table in zip(("chains", "trees"), tables, strict=True):
        print(f"verifier, {about(costs)}: ms of {kind} (times the floor)")
        console.print(table)
    print(_floor_said(forwards))
    print("".join(f"{line}\n" for line in experts_said(forwards)), end="")
    print(growth_said("context", by_context(forwards)))
    print(growth_said("tokens", by_tokens(forwards)))
    if beside:
        print(growth_said("batch", by_batch([forwards, *beside])))
    _show_drafts(costs)


def about(costs: Costs) -> str:
    """Say how the verifier ran."""
    known = costs.circumstances
    return f"{known['runtime']}, {known['dtype']}, batch {costs.forwards.batch}"


def _table(forwards: Forwards, branches: bool) -> Table:
    """Make a table of milliseconds, a context a row and a number of tokens a column."""
    table = Table(box=SIMPLE_HEAD)
    points = {each.shape: each for each in forwards.points if each.shape.branches == branches}
    table.add_column("context", justify="right")
    for number in sorted({shape.num_tokens for shape in points}):
        table.add_column(f"n = {number}", justify="right")
    for context in sorted({shape.context for shape in points}):
        row = [points[shape] for shape in sorted(points) if shape.context == context]
        cells = [f"{1e3 * each.seconds:.2f} ({forwards.ratio(each):.1f}x)" for each in row]
        table.add_row(str(context), *cells)
    return table


def _floor_said(forwards: Forwards) -> str:
    least = min(forwards.points, key=lambda each: each.num_bytes)
    most = max(forwards.points, key=lambda each: each.num_bytes)
    return (
        f"floor: the bytes that a forward must move, {least.num_bytes / 1e6:.1f} to"
        f" {most.num_bytes / 1e6:.1f} MB, over {forwards.bytes_per_second / 1e9:.1f} GB/s, which a"
        " copy of a large tensor moves here, read and written, at best; weights that fit the"
        " processor's caches may take less"
    )


def experts_said(forwards: Forwards) -> Iterator[str]:
    """Say how many experts of a sparse layer were taken, at the longest context; maybe nothing."""
    longest = max(each.shape.context for each in forwards.points)
    for branches, kind in ((False, "text that goes on"), (True, "with others beside it")):
        counted = {
            each.shape.num_tokens: each.experts
            for each in forwards.points
            if each.shape.branches == branches and each.shape.context == longest
        }
        known = [f"{n}: {number:.1f}" for n, number in sorted(counted.items()) if number]
        if known:
            yield f"distinct experts of a layer for n tokens, {kind}: {', '.join(known)}"


def _show_drafts(costs: Costs) -> None:
    for draft in costs.drafts.values():
        behind = f", behind {draft.context:.0f} tokens" if draft.level else ""
        print(f"{draft.name}: start {1e3 * draft.start:.2f} ms, verifier x {draft.verify:.2f}")
        print(f"  the rest of a step of n tokens: {_shown(draft.other)}")
        for choice, curve in draft.level.items():
            print(f"  a level, {choice}, below n nodes{behind}: {_shown(curve)}")
        if draft.growth is not None:
            print(f"  a token of its model behind a context of n: {_shown(draft.growth)}")


def _shown(curve: Curve) -> str:
    pairs = zip(curve.sizes, curve.seconds, strict=True)
    return ", ".join(f"{size}: {1e3 * seconds:.2f}" for size, seconds in pairs)

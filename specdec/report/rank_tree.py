"""A measured tree, drawn, and what trees of all sizes would reach."""

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

RAW = " Logits processors, if decoding has some, are not applied: a recording knows them."
CAVEAT = (
    "Expected over all positions of the text, not over the step starts of decoding, which crowd "
    "behind hard tokens; exact for a temperature where the verifier wrote the text at it." + RAW
)
RECORDED_CAVEAT = (
    "Expected where the steps of the best tree begin, on the recorded texts: of that tree it is "
    "what replay says, of smaller and larger ones an estimate."
)
POSITIONAL_CAVEAT = (
    "Expected over all positions of the text, and as if acceptance at one depth said nothing about "
    "the next." + RAW
)


def rank_tree(
    paths: Sequence[tuple[int, ...]], shares: Sequence[float], word: str = "rank"
) -> Tree:
    """Draw paths, each behind its beginning, with the share of positions at which they hold.

    `word` is what the numbers of a path are: ranks, or children in drawing order.
    """
    nodes: dict[tuple[int, ...], Tree] = {(): Tree("the last committed token", highlight=False)}
    for path, share in zip(paths, shares, strict=True):
        nodes[path] = nodes[path[:-1]].add(f"{word} {path[-1]}  [dim]{100 * share:.2f} %[/dim]")
    return nodes[()]


def efficiency_table(
    reached: Mapping[str, Sequence[float]], depths: Sequence[int], num_nodes: int
) -> Table:
    """Lay out block efficiency by number of nodes: 1, 2, 4, ..., the chosen one and the largest.

    `reached` maps a column's name to the values for 1, 2, ... nodes, the first being the longest
    column or as long; `depths` are the depths of the first one's trees.
    """
    table = Table(title="expected block efficiency (tau)", title_justify="left", box=SIMPLE_HEAD)
    for name in ("nodes", "depth", *reached):
        table.add_column(name, justify="right", no_wrap=True)
    largest = len(depths)
    sizes = {min(1 << power, largest) for power in range(largest.bit_length() + 1)}
    for size in sorted(sizes | {num_nodes}):
        values = [f"{row[size - 1]:.3f}" if size <= len(row) else "-" for row in reached.values()]
        table.add_row(str(size), str(depths[size - 1]), *values)
    return table


def acceptance_table(acceptance: Sequence[Sequence[float]], all_depths: bool) -> Table:
    """Lay out positional acceptance [D][K] in percent, a row for each child."""
    title = "positional acceptance: % of positions at which this child is the accepted one"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    depths = ["all depths"] if all_depths else [f"depth {d + 1}" for d in range(len(acceptance))]
    for name in ("child", *depths):
        table.add_column(name, justify="right", no_wrap=True)
    for child, column in enumerate(zip(*acceptance, strict=True)):
        table.add_row(str(child), *(f"{100 * p:.2f}" for p in column))
    return table


def budget_table(budgets: Sequence[Mapping[str, float]], num_nodes: int) -> Table:
    """Lay out what trees of 0, 1, 2, 4, ... nodes bring and cost, the chosen one and the fastest.

    `gain` and `price` are those of the last node, in tokens per step: it pays while the gain is the
    larger one.
    """
    title = "predicted throughput of the largest tree's beginnings"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("nodes", "tau", "ms / step", "tokens / s", "gain", "price"):
        table.add_column(name, justify="right", no_wrap=True)
    fastest = max(range(len(budgets)), key=lambda size: budgets[size]["throughput"])
    largest = len(budgets) - 1
    sizes = {min(1 << power, largest) for power in range(largest.bit_length() + 1)}
    for size in sorted({0, fastest, *sizes, min(num_nodes, largest)}):
        row = budgets[size]
        last = [f"{row[name]:.4f}" if size else "-" for name in ("gain", "price")]
        numbers = f"{row['block_efficiency']:.3f}", f"{1e3 * row['seconds']:.2f}"
        style = "bold" if size == fastest else ""
        table.add_row(str(size), *numbers, f"{row['throughput']:.1f}", *last, style=style)
    return table


def print_rank_tree(tree: Tree, tables: Sequence[Table], title: str, caveat: str = CAVEAT) -> None:
    """Print all of it, in colour on a terminal."""
    console = Console()
    console.print(title, highlight=False)
    console.print(tree)
    for table in tables:
        console.print(table)
    console.print(f"[dim]{caveat}[/dim]", highlight=False)

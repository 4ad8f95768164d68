"""What the tests of losslessness found, one run a row."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from specdec.metrics.pit import Uniformity

LEGEND = (
    "p-values of: equal bins, independence of neighbours, Kolmogorov-Smirnov, and equal bins for"
    " tokens in the order of the draft's q / p, which shows a text that leans to its draft. 'all':"
    " the smallest of them times their number. 'impossible': tokens that are not in the verifier's"
    " distribution."
)


def print_uniformity(found: Mapping[str, Uniformity], verdicts: Mapping[str, bool]) -> None:
    """Print one row for each run, by name, with its verdict."""
    table = Table(title="randomised PIT", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("run", no_wrap=True)
    for name in ("tokens", "impossible", "bins", "pairs", "KS", "draft", "all", "lossless"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in found.items():
        p_values = (row.bins, row.pairs, row.ks, row.draft, row.p_value)
        table.add_row(
            name,
            str(row.num_tokens),
            str(row.num_impossible),
            *("-" if value is None else f"{value:.2g}" for value in p_values),
            "yes" if verdicts[name] else "NO",
        )
    console = Console()
    # Broken names are worse than broken lines; pipes and files claim to be 80 wide.
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console = Console(width=max(needed, console.width))
    console.print(table)
    console.print(f"[dim]{LEGEND}[/dim]", highlight=False)

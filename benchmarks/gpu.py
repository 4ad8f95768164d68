"""What a GPU should show, in ten minutes: each number beside its target, and all of them as JSON.

    python benchmarks/gpu.py                          # shapes of 1B and 8B, random weights
    python benchmarks/gpu.py runtimes=eager,cuda_graphs       # without minutes of a compiler
    python benchmarks/gpu.py shapes=half device=cpu   # 0.5B, on a processor: some minutes
    python benchmarks/gpu.py shapes=tiny device=cpu   # the same measures in seconds, anywhere

Texts are first compared between runtimes on the device, in float32. Then come steps against what
must be read from memory, trees, speculation with drafts of a known quality against theory, batches,
and how often the host waits. Where a step is timed, the host reads its token; captures and
compilers are in no time. Of (e) to (g) models run by graphs, on a processor by compiled
programs where those were asked for, and else eagerly.

Nothing of this was run on a GPU where it was written: there was none.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from gpu_parts import Bench, Row
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from specdec.core.errors import UserError
from specdec.core.jsonl import require_writable, write_json
from specdec.results.provenance import provenance

DEFAULTS = {
    "shapes": "llama",
    "device": "cuda",
    "dtype": "auto",
    "runtimes": None,  # eager,cuda_graphs,compiled: those that the device has
    "output": "outputs/gpu.json",
}


def measure(bench: Bench, found: list[Row]) -> None:
    """Measure everything into a list; print each part as soon as it is there."""
    for part, rows in groupby(bench.rows(), key=lambda row: row.part):
        table = Table("measure", "value", "target", "met", title=part, title_justify="left")
        for row in rows:
            found.append(row)
            table.add_row(*row.cells())
        Console(width=100).print(table)


def write(path: str, bench: Bench, rows: Sequence[Row]) -> None:
    """Write what was measured, how, and what was left out."""
    dtype = str(bench.dtype).removeprefix("torch.")
    report = {
        "provenance": provenance(bench.device, dtype, "sdpa", ",".join(bench.runtimes)),
        "left_out": bench.left_out,
        "rows": [{**asdict(row), "is_met": row.is_met} for row in rows],
    }
    write_json(Path(path), report)
    missed = [row for row in rows if row.is_met is False]
    print(f"{len(rows)} numbers, {len(missed)} beside their target: {path}")


def main() -> None:
    """Measure, print, and write the file, whatever happens meanwhile."""
    options = OmegaConf.create(DEFAULTS)
    OmegaConf.set_struct(options, True)  # a mistyped option is refused
    options.merge_with_cli()
    try:
        require_writable(Path(options.output))  # before minutes of measuring, not behind them
        bench = Bench(options)
    except UserError as error:
        sys.exit(f"error: {error}")
    rows: list[Row] = []
    try:
        measure(bench, rows)
    finally:
        write(options.output, bench, rows)


if __name__ == "__main__":
    main()

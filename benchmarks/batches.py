"""Tokens per second against the number of requests in flight, for one proposer of each kind.

    python benchmarks/batches.py                                  # the embedded pair, eager
    python benchmarks/batches.py runtime=compiled sizes=[1,8]     # by compiled programs

All requests are decoded with each number of requests in flight in turn, and each number is a median
over the repeats. A request that is done makes room for the next one, so that nobody waits for the
slowest.
"""

import statistics
import sys
import time

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from speed import DEFAULTS, Bench
from transformers import logging

import specdec as sd
from specdec.core.protocols import Proposer

MORE = {"sizes": [1, 2, 4, 8, 16, 32], "requests": 64, "new_tokens": 64, "repeats": 1}


class Batches:
    """The models, the requests, and how they are decoded."""

    def __init__(self, bench: Bench, num_requests: int):
        self.bench = bench
        prompts = bench.prompts
        self.requests = [
            sd.Request(str(number), prompts[number % len(prompts)])
            for number in range(num_requests)
        ]

    def speed(self, proposer: Proposer, size: int) -> float:
        """Return tokens per second with so many requests in flight."""
        decoder = self.bench.ours(proposer, 0.0, size)
        decoder.decode(self.requests[:size])  # compiles, and allocates the caches
        start = time.perf_counter()
        traces = decoder.decode(self.requests)
        return sum(len(trace.output_ids) for trace in traces) / (time.perf_counter() - start)


def main() -> None:
    """Measure everything and print one table."""
    logging.set_verbosity_error()
    options = OmegaConf.create({**DEFAULTS, **MORE})
    OmegaConf.set_struct(options, True)  # a mistyped option is refused
    options.merge_with_cli()
    bench = Bench(options)
    batches = Batches(bench, options.requests)
    table = Table("requests in flight", *map(str, options.sizes))
    proposers: dict[str, Proposer] = {"none": sd.NoProposer(), **bench.proposers()}
    for name, proposer in proposers.items():
        repeats = [
            [batches.speed(proposer, size) for size in options.sizes]
            for _ in range(options.repeats)
        ]
        speeds = [statistics.median(each) for each in zip(*repeats, strict=True)]
        table.add_row(f"{name}, tokens/s", *(f"{speed:.0f}" for speed in speeds))
        table.add_row("  over the first", *(f"{speed / speeds[0]:.2f}" for speed in speeds))
    Console(width=100).print(table)


if __name__ == "__main__":
    sys.exit(main())

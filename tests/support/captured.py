"""The runtime `cuda_graphs` on the CPU: the product's own code, on the emulator of capture."""

from typing import Any

from specdec.runtime.graphs import GraphSteps
from specdec.runtime.proven import ProvenSteps
from specdec.runtime.stock_steps import StockSteps
from tests.support.tape import Pool


class Emulated:
    """Stands in for `specdec.runtime.choice.steps_of`; remembers what it made."""

    def __init__(self, most: int = 64):
        self.steps: list[GraphSteps] = []
        self.pools: list[Pool] = []
        self._most = most

    def __call__(self, name: str, model: Any, cache_word: str) -> ProvenSteps | None:
        """Return a model's steps by graphs of their own, whichever runtime but `eager` is meant."""
        if name == "eager":
            return None
        self.pools.append(Pool())
        stock = StockSteps(model, cache_word)
        self.steps.append(GraphSteps(stock, self.pools[-1].new_tape, self._most))
        return ProvenSteps(self.steps[-1], model, name)

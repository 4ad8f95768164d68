"""The runtime `cuda_graphs` on the CPU: the product's own code, on the emulator of capture."""

from typing import Any

from transformers import PreTrainedModel

from specdec.runtime.graphs import GraphSteps
from specdec.runtime.proven import ProvenSteps
from specdec.runtime.stock_steps import StockSteps
from tests.support.families import FAMILIES, tiny_model
from tests.support.tape import Pool

# Falcon splits its heads by a list, [-2], which is sent to the device at each step.
CAPTURABLE = sorted(FAMILIES.keys() - {"falcon"})


def capturable(family: str) -> PreTrainedModel:
    """Build a model; experts one by one are looked for by the host, batches of them are not."""
    has_experts = "num_experts_per_tok" in FAMILIES[family]
    more: dict[str, Any] = {"experts_implementation": "batched_mm"} if has_experts else {}
    return tiny_model(family, **more)


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

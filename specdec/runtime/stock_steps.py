"""A model's steps as its own code has them, operation by operation, written as programs."""

from torch import Tensor
from transformers import PreTrainedModel

from specdec.runtime.attention import folding
from specdec.runtime.program import Inputs, Wanted, program_of


class StockSteps:
    """Run each step's program as it was written.

    Args:
        model: whose steps they are.
        cache_word: the keyword by which its forward takes a cache.
    """

    def __init__(self, model: PreTrainedModel, cache_word: str):
        self._model = model
        self._cache_word = cache_word

    def __call__(self, inputs: Inputs, wanted: Wanted = ()) -> tuple[Tensor, ...]:
        """Run a step; returns what is wanted."""
        with folding(self._model):
            return program_of(self._model, self._cache_word, wanted)(*inputs)

"""Prompts enter rows here, whichever way a model reads them."""

from collections.abc import Sequence

from torch import Tensor

from specdec.core.protocols import CausalLM, WholePrompts
from specdec.core.values import Layer


def begin(
    model: CausalLM,
    rows: Sequence[int],
    prompts: Sequence[Sequence[int]],
    layers: Sequence[Layer] = (),
) -> list[dict[Layer, Tensor]]:
    """Read prompts into empty rows, which then hold all of their tokens but the last.

    That one is the root of the first tree, and is read with it. Returns the hidden states [L, H] of
    the others.
    """
    if isinstance(model, WholePrompts):
        return model.begin(rows, prompts, layers)
    return model.prefill(rows, [prompt[:-1] for prompt in prompts], layers)

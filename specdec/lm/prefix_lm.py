"""Prefix-LM attention: a prompt sees itself in both directions.

Dong et al. 2019 (the sequence-to-sequence mask); Raffel et al. 2020 (section 3.2.1). Tokens behind
the prompt see all of it, and what stands left of them. So a prompt's cells depend on all of the
prompt, and on nothing behind it: once they are there, everything is read as in a causal model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.values import Layer
from specdec.lm import mask
from specdec.lm.batch import pad
from specdec.lm.hf import HFCausalLM, without_gradients
from specdec.lm.mask import PREFIX_LM
from specdec.lm.new_cells import NewCells
from specdec.lm.recomputing import RecomputingLM


class PrefixLM(HFCausalLM):
    """A decoder whose prompts see themselves in both directions: `verifier.attention=prefix_lm`.

    What is appended by `prefill` and `forward` is text behind the prompt.
    """

    prompt_mask = PREFIX_LM
    may_forget = False

    @without_gradients
    def begin(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], layers: Sequence[Layer] = ()
    ) -> list[dict[Layer, Tensor]]:
        """Read whole prompts into empty rows; see `WholePrompts.begin`.

        Each in one forward, since its first token waits for its last. No more rows at once than
        have as many tokens as a chunk of ordinary prompts.
        """
        longest = max((len(prompt) for prompt in prompts), default=0)
        at_once = max(1, len(rows) * self._prefill_chunk // max(1, longest))
        found: list[dict[Layer, Tensor]] = []
        for first in range(0, len(rows), at_once):
            some = slice(first, first + at_once)
            found += self._begin(rows[some], prompts[some], layers)
        return found

    def _begin(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], layers: Sequence[Layer]
    ) -> list[dict[Layer, Tensor]]:
        assert not any(map(self.length, rows)), "a prompt stands at the beginning"
        token_ids = pad(prompts, self.device)
        lengths = on_device([len(prompt) for prompt in prompts], self.device)
        seen = mask.whole_prompts(lengths, token_ids.shape[1])
        cells = NewCells(rows, token_ids, attend=seen)
        hidden = self._run(self.model.base_model, cells, layers).hidden
        for row, prompt in zip(rows, prompts, strict=True):
            self.keep(row, len(prompt) - 1)  # the last token is read again, with the first tree
        return [
            {layer: hidden[layer][number, : len(prompt) - 1] for layer in layers}
            for number, prompt in enumerate(prompts)
        ]


class RecomputingPrefixLM(RecomputingLM):
    """The same without a cache: `verifier.attention=prefix_lm verifier.cache=none`."""

    prompt_mask = PREFIX_LM

    def open(self, num_rows: int, capacity: int) -> None:
        """Start afresh with empty rows."""
        super().open(num_rows, capacity)
        self._num_prompt = [0] * num_rows  # tokens of each row's prompt; 0: there is none

    def keep(self, row: int, prefix: int, nodes: Sequence[int] = ()) -> None:
        """Keep a row's first `prefix` tokens and, of those behind, only the ones listed."""
        super().keep(row, prefix, nodes)
        if prefix == 0:
            self._num_prompt[row] = 0

    def begin(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], layers: Sequence[Layer] = ()
    ) -> list[dict[Layer, Tensor]]:
        """Read whole prompts into empty rows; see `WholePrompts.begin`."""
        for row, prompt in zip(rows, prompts, strict=True):
            self._num_prompt[row] = len(prompt)
        found = self.prefill(rows, prompts, layers)
        for row, prompt in zip(rows, prompts, strict=True):
            self.keep(row, len(prompt) - 1)
        return [{layer: states[:-1] for layer, states in each.items()} for each in found]

    def _seen(self, rows: Sequence[int], attend: Tensor) -> Tensor:  # [B, T, T]
        """Let the tokens of prompts see their prompts."""
        lengths = on_device([self._num_prompt[row] for row in rows], self.device)
        places = torch.arange(attend.shape[1], device=self.device)
        inside = places < lengths[:, None]  # [B, T]
        return attend | (inside[:, :, None] & inside[:, None, :])

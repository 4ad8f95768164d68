"""Where the candidates of a growing tree stand in a draft model's cache, and what they may see."""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.core.on_device import on_device
from specdec.proposer.levels import Frontier


class FrontierCells:
    """Where frontiers stand in a cache that holds each row's text and then one cell for each node.

    Row b has `lengths[b]` cells of text, the root included.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device):
        self._lengths = lengths
        self._device = device
        self._depth = 0
        # [B, F, n]: which of the n cells behind the text each node of the last frontier sees; made
        # when a tree is no longer a chain, in which each cell sees all before it.
        self._seen: Tensor | None = None
        self.is_chain = True  # each cell so far is the only candidate below the one before it

    def add(self, frontier: Frontier) -> tuple[Tensor | None, Tensor | None]:
        """Return positions [B, F] and `attend` [B, F, L] as `CausalLM.forward` takes them."""
        num_rows, width = frontier.token_ids.shape
        self._depth += 1
        self.is_chain = self.is_chain and frontier.is_whole_level and width == 1
        if self.is_chain:
            return None, None
        if self._seen is None:
            shape = (num_rows, 1, self._depth - 1)
            self._seen = torch.ones(shape, dtype=torch.bool, device=self._device)
        above = frontier.parents[..., None].expand(-1, -1, self._seen.shape[-1])
        own = torch.eye(width, dtype=torch.bool, device=self._device).expand(num_rows, -1, -1)
        self._seen = torch.cat([self._seen.gather(1, above), own], dim=-1)
        lengths = on_device(self._lengths, self._device)[:, None]
        positions = (lengths - 1 + self._depth).expand(-1, width)
        return positions, self._attend(self._seen, lengths)

    def _attend(self, seen: Tensor, lengths: Tensor) -> Tensor:  # [B, F, n], [B, 1] -> [B, F, L]
        num_cells = seen.shape[-1]
        cell = torch.arange(max(self._lengths) + num_cells, device=self._device)
        behind = cell - lengths  # [B, L]: the cell's number behind the text
        number = behind.clamp(0, num_cells - 1)[:, None].expand(-1, seen.shape[1], -1)
        is_candidate = ((behind >= 0) & (behind < num_cells))[:, None]
        return (behind < 0)[:, None] | (is_candidate & seen.gather(2, number))

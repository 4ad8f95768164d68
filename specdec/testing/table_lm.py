"""A toy language model whose distribution is known exactly: for tests, yours included."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from specdec.core.protocols import Forward
from specdec.core.values import Layer


class TableLM:
    """Logits [V] are a function of the tokens read so far; the cache is the tokens themselves.

    What a new cell has read are the cells that it attends to, in the order of their positions; so
    a wrong mask, position or rewind changes the text, as it would with a real model.
    """

    def __init__(
        self,
        logits_after: Callable[[tuple[int, ...]], Tensor],
        vocab_size: int,
        max_length: int = 1 << 20,
    ):
        self._logits_after = logits_after
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.device = torch.device("cpu")
        self.num_calls = 0
        self._cells: list[list[tuple[int, int]]] = []  # per row: (position, token)

    def open(self, num_rows: int, capacity: int) -> None:
        """Start afresh with empty rows."""
        self._cells = [[] for _ in range(num_rows)]
        self.num_calls = 0

    def length(self, row: int) -> int:
        """Return the number of cells of a row."""
        return len(self._cells[row])

    def prefill(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], layers: Sequence[Layer] = ()
    ) -> list[dict[Layer, Tensor]]:
        """Append ordinary text to some rows; a table has no hidden states."""
        assert not layers
        for row, ids in zip(rows, token_ids, strict=True):
            start = len(self._cells[row])
            self._cells[row] += [(start + offset, token) for offset, token in enumerate(ids)]
        return [{} for _ in rows]

    def forward(
        self,
        rows: Sequence[int],
        token_ids: Tensor,
        positions: Tensor | None = None,
        attend: Tensor | None = None,
        layers: Sequence[Layer] = (),
    ) -> Forward:
        """Append cells and look each one's logits up; see `CausalLM.forward`."""
        assert not layers
        self.num_calls += 1
        logits = [
            self._row(
                row,
                token_ids[index].tolist(),
                None if positions is None else positions[index].tolist(),
                None if attend is None else attend[index].tolist(),
            )
            for index, row in enumerate(rows)
        ]
        return Forward(torch.stack(logits), {})

    def _row(
        self,
        row: int,
        token_ids: list[int],
        positions: list[int] | None,
        attend: list[list[bool]] | None,
    ) -> Tensor:  # [M, V]
        cells = self._cells[row]
        start = len(cells)
        if positions is None:
            positions = list(range(start, start + len(token_ids)))
        cells += zip(positions, token_ids, strict=True)
        logits: list[Tensor] = []
        for offset in range(len(token_ids)):
            read = cells[: start + offset + 1]
            if attend is not None:
                read = [cell for cell, seen in zip(cells, attend[offset], strict=False) if seen]
            logits.append(self._logits_after(tuple(token for _, token in sorted(read))))
        return torch.stack(logits)

    def keep(self, row: int, prefix: int, nodes: Sequence[int] = ()) -> None:
        """Keep a row's first `prefix` cells and, of those behind, only the ones listed."""
        cells = self._cells[row]
        self._cells[row] = cells[:prefix] + [cells[prefix + node] for node in nodes]


def random_table(seed: int = 0, vocab_size: int = 13, max_length: int = 1 << 20) -> TableLM:
    """Return a model whose next token depends on the last three, with logits that a seed fixes."""

    @cache
    def logits(last: tuple[int, ...]) -> Tensor:
        number = seed
        for token in last:
            number = number * vocab_size + token + 1
        return 2 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(number))

    return TableLM(lambda token_ids: logits(token_ids[-3:]), vocab_size, max_length)

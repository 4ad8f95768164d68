"""What a forward is asked: new cells of some rows, and the rows around them that a program runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.on_device import on_device
from specdec.lm import mask


class NewCells(NamedTuple):
    """M new cells for each of B rows; see `CausalLM.forward`."""

    rows: Sequence[int]
    token_ids: Tensor  # [B, M]
    positions: Tensor | None = None  # [B, M]; None: they count on
    attend: Tensor | None = None  # [B, M or 1, L] bool; None: each sees its row up to itself

    @property
    def num_new(self) -> int:
        """M."""
        return self.token_ids.shape[1]

    def placed(self, starts: Sequence[int], last_position: int) -> tuple[Tensor, Tensor]:
        """Return positions [B, M] and what each cell attends to [B, M, L], said or not."""
        positions, attend, device = self.positions, self.attend, self.token_ids.device
        if positions is None:
            offsets = torch.arange(self.num_new, device=device)
            positions = on_device(list(starts), device)[:, None] + offsets
            # Only padding can stand behind the context, where learned positions end.
            positions = positions.clamp(max=last_position)
        if attend is None:
            attend = mask.causal(starts, self.num_new, device)
        return positions, attend

    def require_chain(self, starts: Sequence[int], last_position: int, refusal: str) -> None:
        """Refuse cells that are no chain; one may come with positions and a mask all the same.

        Raises:
            UserError: `refusal`.
        """
        if self.positions is None and self.attend is None:
            return
        plain = NewCells(self.rows, self.token_ids).placed(starts, last_position)
        given = self.placed(starts, last_position)
        if not all(torch.equal(*pair) for pair in zip(given, plain, strict=True)):
            raise UserError(refusal)


@dataclass(frozen=True)
class Span:
    """Neighbouring rows of a cache, of which some may be idle: nobody asked for those.

    A program computes whole neighbours, so that no cache is gathered. What it writes to idle rows
    lies behind their cells, where no one looks.
    """

    rows: range
    listed: Sequence[int]  # those that were asked for, in their order

    @classmethod
    def around(cls, listed: Sequence[int], num_rows: int) -> "Span | None":
        """Find the neighbours that hold some rows; None if most of them would be idle.

        Of several rows at least two, so that a queue that runs empty needs no program of its own.
        """
        first, last = min(listed), max(listed)
        if first == last and num_rows > 1:
            first, last = (first, last + 1) if last + 1 < num_rows else (first - 1, last)
        rows = range(first, last + 1)
        return cls(rows, listed) if len(rows) <= 2 * len(listed) else None

    @property
    def places(self) -> list[int] | None:
        """Where the listed rows are among the neighbours; None: they are all, in order."""
        found = [row - self.rows[0] for row in self.listed]
        return None if found == list(range(len(self.rows))) else found

    def filled(self, cells: NewCells, starts: Sequence[int], last_position: int) -> NewCells:
        """Add cells of idle rows, behind the `starts` cells that each row has."""
        places = self.places
        if places is None:
            return cells._replace(rows=self.rows)
        where = on_device(places, cells.token_ids.device)
        token_ids = cells.token_ids.new_zeros(len(self.rows), cells.num_new)
        found = NewCells(self.rows, token_ids.index_copy(0, where, cells.token_ids))
        if cells.positions is None and cells.attend is None:
            return found
        own_positions, own_attend = found.placed(starts, last_position)
        positions, attend = cells.positions, cells.attend
        if positions is not None:
            positions = own_positions.index_copy(0, where, positions)
        if attend is not None:
            attend = torch.nn.functional.pad(attend, (0, own_attend.shape[2] - attend.shape[2]))
            attend = own_attend.index_copy(0, where, attend)
        return found._replace(positions=positions, attend=attend)

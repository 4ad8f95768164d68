"""Drafting with some of a model's own layers, in its own cache, and reading the rest afterwards.

Zhang et al. 2023 (Draft & Verify, arXiv 2309.08168) skip layers in the middle; Elhoushi et al. 2024
(LayerSkip, arXiv 2404.16710) exit early, and let verification go on from the cells and states of
the first layers. Both are the same here: layers before the first one that is skipped are shared.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from specdec.core.on_device import on_device
from specdec.core.protocols import Forward
from specdec.core.tree import ROOT, CandidateTree
from specdec.lm import mask
from specdec.lm.batch import TreeBatch, pad
from specdec.lm.hf import HFCausalLM, without_gradients
from specdec.lm.layer_split import LayerSplit
from specdec.lm.new_cells import NewCells

ROOT_PARENT = -1


class _Drafted(NamedTuple):
    """One frontier of each of B rows, as the layers that draft have read it."""

    token_ids: Tensor  # [B, F]
    parents: Tensor | None  # [B, F]: places in the frontier before; None: these are the roots
    states: Tensor  # [B, F, H]: what reached the first layer that is not shared


class SelfDrafting:
    """Grow candidates behind the text of some rows, then let the whole model read them.

    The drafts' cells stand behind those of the committed text, in the layers that draft; the rows'
    lengths do not change before `finish`.
    """

    def __init__(self, lm: HFCausalLM, split: LayerSplit):
        self._lm = lm
        self._split = split
        self.start(())

    def start(self, rows: Sequence[int]) -> None:
        """Begin a step of these rows; what was drafted before and not read is forgotten."""
        self._rows = list(rows)
        self._drafted: list[_Drafted] = []

    @property
    def _num_drafted(self) -> int:
        return sum(each.token_ids.shape[1] for each in self._drafted)

    @without_gradients
    def draft(
        self,
        token_ids: Tensor,
        parents: Tensor | None = None,
        positions: Tensor | None = None,
        attend: Tensor | None = None,
    ) -> Tensor:
        """Read the next frontier [B, F] of the rows, first the roots; returns its logits [B, F, V].

        `positions` and `attend` are as of `CausalLM.forward`, where the frontiers before stand
        behind each row's text in turn.
        """
        cells = NewCells(self._rows, token_ids, positions, attend)
        ahead = [self._num_drafted] * len(self._rows)
        logits = self._lm.read_part(self._split.draft, cells, ahead)
        self._drafted.append(_Drafted(token_ids, parents, self._split.take()))
        return logits

    @without_gradients
    def finish(self, rows: Sequence[int], trees: Sequence[CandidateTree]) -> Forward:
        """Read one tree per row to the end, as `CausalLM.forward` would.

        Shared layers read only the nodes that they have not read while drafting.
        """
        lm = self._lm
        batch = TreeBatch.of(trees, [lm.length(row) for row in rows], lm.device)
        if self._split.num_shared > 0:
            self._split.give(self._read_shared(rows, trees))
        logits = lm.read_part(self._split.rest, NewCells(rows, *batch))
        self.start(())
        return Forward(logits, {})

    def _read_shared(
        self, rows: Sequence[int], trees: Sequence[CandidateTree]
    ) -> Tensor:  # [B, M, H]
        """Let the shared layers read what they have not; put cells and states in order of nodes."""
        drafted = self._by_row()
        nothing = _OfRow(_NO_CELLS, None)
        found = [drafted.get(row, nothing) for row in rows]
        places = [each.cells.places(tree) for each, tree in zip(found, trees, strict=True)]
        pools = [[] if each.states is None else [each.states] for each in found]
        unread = [
            _Unread(row, tree, place, each.cells.number)
            for row, tree, place, each in zip(rows, trees, places, found, strict=True)
        ]
        lacking = [index for index, each in enumerate(unread) if each.nodes]
        if lacking:
            states = self._read_more([unread[index] for index in lacking])
            for index, state in zip(lacking, states, strict=True):
                pools[index].append(state[: len(unread[index].nodes)])
        for row, place in zip(rows, places, strict=True):
            self._lm.arrange(row, place, self._split.num_shared)
        device = self._lm.device
        ordered = [
            torch.cat(pool)[on_device(place, device)]
            for pool, place in zip(pools, places, strict=True)
        ]
        return pad_sequence(ordered, batch_first=True)

    def _read_more(self, unread: "Sequence[_Unread]") -> Tensor:  # [B', M', H]
        """Read nodes behind the cells that were drafted."""
        lm, rows = self._lm, [each.row for each in unread]
        token_ids = pad([each.token_ids for each in unread], lm.device)
        positions, attend = None, None
        if not all(each.is_text for each in unread):
            starts = [lm.length(row) for row in rows]
            positions = pad(
                [each.positions(start) for each, start in zip(unread, starts, strict=True)],
                lm.device,
            )
            behind = [each.num_drafted for each in unread]
            attend = mask.nodes(starts, behind, [each.sights for each in unread], lm.device)
        cells = NewCells(rows, token_ids, positions, attend)
        lm.read_part(self._split.shared, cells, [each.num_drafted for each in unread])
        return self._split.take()

    def _by_row(self) -> "Mapping[int, _OfRow]":
        """Return what was drafted behind each row."""
        if not self._drafted:
            return {}
        token_ids = torch.cat([each.token_ids for each in self._drafted], dim=1).tolist()
        above = [each.parents for each in self._drafted if each.parents is not None]
        parents = torch.cat(above, dim=1).tolist() if above else [[] for _ in self._rows]
        widths = [each.token_ids.shape[1] for each in self._drafted]
        states = torch.cat([each.states for each in self._drafted], dim=1)
        return {
            row: _OfRow(_Cells.of(widths, *given), state)
            for row, state, *given in zip(self._rows, states, token_ids, parents, strict=True)
        }


class _Cells:
    """Which candidate each cell behind a row's text is of.

    Those with one path of tokens are one candidate, and any of their cells will do.
    """

    def __init__(self) -> None:
        self._children: dict[tuple[int, int], int] = {}  # by parent's cell and token
        self.number = 0

    @classmethod
    def of(
        cls, widths: Sequence[int], token_ids: Sequence[int], parents: Sequence[int]
    ) -> "_Cells":
        """Number the nodes of frontiers of these widths; the root, which comes first, has none."""
        found, above, below = cls(), [ROOT_PARENT], iter(parents)
        tokens = iter(token_ids)
        for depth, width in enumerate(widths):
            places = [0] * width if depth == 0 else [next(below) for _ in range(width)]
            above = [found._add(above[place], next(tokens)) for place in places]
        return found

    def _add(self, parent: int, token: int) -> int:
        cell = self._children.setdefault((parent, token), self.number)
        self.number += 1
        return cell

    def places(self, tree: CandidateTree) -> list[int]:
        """Return the cell of each node; nodes without get those behind, in turn."""
        found: list[int] = []
        more = self.number
        for node, (token, parent) in enumerate(zip(tree.token_ids, tree.parents, strict=True)):
            above = ROOT_PARENT if node == ROOT else found[parent]
            cell = self._children.get((above, token))
            if cell is None:
                cell, more = more, more + 1
            found.append(cell)
        return found


class _OfRow(NamedTuple):
    """What was drafted behind one row."""

    cells: _Cells
    states: Tensor | None  # [n, H]; None: nothing was


class _Unread:
    """The nodes of a tree that the shared layers have not read."""

    def __init__(self, row: int, tree: CandidateTree, places: Sequence[int], num_drafted: int):
        self.row, self.num_drafted = row, num_drafted
        self._tree, self._places = tree, places
        self.nodes = [node for node, place in enumerate(places) if place >= num_drafted]

    @property
    def token_ids(self) -> list[int]:
        """Theirs."""
        return [self._tree.token_ids[node] for node in self.nodes]

    @property
    def is_text(self) -> bool:
        """Whether all cells, as they stand, are one text without a branch."""
        return self._tree.is_chain and list(self._places) == list(range(len(self._places)))

    def positions(self, start: int) -> list[int]:
        """Where they stand in a text of which the tree's root is token `start`."""
        return [start + self._tree.depths[node] for node in self.nodes]

    @property
    def sights(self) -> list[list[int]]:
        """The cells behind the text that each sees: of the nodes above it, and its own."""
        above = self._tree.ancestors()
        return [
            [self._places[other] for other, seen in enumerate(above[node]) if seen]
            for node in self.nodes
        ]


_NO_CELLS = _Cells()

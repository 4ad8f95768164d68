"""Attention masks: additive floats [B, 1, M, L], made here and nowhere else.

A boolean mask would be silently wrong under eager attention, which adds whatever it is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from specdec.core.errors import UserError
from specdec.core.on_device import on_device, sent
from specdec.lm.cache import RowCache
from specdec.runtime.program import FULL, SLIDING

PREFIX_LM = "prefix_lm"  # the attention of which prompts see themselves in both directions
# Layers without attention, or with full attention beside a recurrent part: "hybrid".
UNMASKED = ("linear_attention", "conv", "hybrid", "mlp", "moe")


@dataclass(frozen=True)
class MaskKind:
    """Which masks a model wants: `window` is None where it has no sliding-window layer."""

    window: int | None
    hybrid: bool  # full and sliding layers mixed: the model takes a dict of both
    unmasked: tuple[str, ...] = ()  # kinds of layers that it looks up in that dict, too
    attends: bool = True  # whether any layer takes a mask

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "MaskKind":
        """Read it off a configuration; refuse layers whose cells or states cannot be taken back.

        Raises:
            UserError: the model has such layers (of chunks, of compressed cells, ...).
        """
        kinds = set(getattr(config, "layer_types", None) or [])
        unmasked = tuple(sorted(kinds & set(UNMASKED)))
        kinds -= set(unmasked)
        # GPT-Neo's local attention counts cells, not positions, so a tree shifts its windows.
        local = {
            kind for kind in getattr(config, "attention_layers", None) or [] if kind == "local"
        }
        strange = sorted(kinds - {FULL, SLIDING} | local)
        if strange:
            raise UserError(
                f"{config.model_type}: layers of kind {', '.join(strange)} cannot be rewound to an"
                f" accepted path; supported are {FULL} and {SLIDING}"
            )
        window = getattr(config, "sliding_window", None)
        if kinds:
            return cls(window if SLIDING in kinds else None, len(kinds) == 2, unmasked)
        attends = not unmasked or "hybrid" in unmasked
        return cls(None if unmasked else window, False, unmasked, attends)

    def of_cells(
        self,
        cache: RowCache,
        rows: Sequence[int],
        positions: Tensor,
        attend: Tensor,
        dtype: torch.dtype,
    ) -> Tensor | dict[str, Tensor]:
        """Turn what new cells attend to, [B, M, L], into what the model takes."""
        known = None
        if self.window is not None:
            known = cache.note_positions(rows, positions, attend.shape[2])
        return self.masks(attend, positions, known, dtype)

    def masks(
        self,
        attend: Tensor,
        query_positions: Tensor,
        key_positions: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor | dict[str, Tensor]:
        """Turn `attend` [B, M, L] into what the model takes as `attention_mask`.

        `query_positions` [B, M] and `key_positions` [B, L] matter for windows only: a query at
        position s sees keys at positions above s - window.
        """
        if self.window is None:
            return additive(attend, dtype)
        assert key_positions is not None
        near = query_positions[:, :, None] - key_positions[:, None, :] < self.window
        windowed = additive(attend & near, dtype)
        if not self.hybrid:
            return windowed
        none: dict[str, Any] = dict.fromkeys(self.unmasked)
        return {FULL: additive(attend, dtype), SLIDING: windowed, **none}


class PlainText:
    """Positions and masks of ordinary text in rows of one length, as views of stored tensors.

    One new token after another is what a draft model reads all the time; building the same zeros
    anew each time would cost a noticeable share of a small model's forward.
    """

    def __init__(self, kind: MaskKind, dtype: torch.dtype, device: torch.device):
        self._windowed = kind.window is not None
        self._dtype = dtype
        self._positions = torch.arange(0, device=device)[None]
        self._masks: dict[int, Tensor] = {}  # M -> [1, 1, M, width + M]

    def serves(self, starts: Sequence[int]) -> bool:
        """Whether these rows can use it: they start alike, and there is no window."""
        return not self._windowed and min(starts) == max(starts)

    def at(self, start: int, num_new: int) -> tuple[Tensor, Tensor]:  # [1, M], [1, 1, M, start + M]
        """Return positions and the additive mask of `num_new` cells behind `start` cached ones."""
        end = start + num_new
        if self._positions.shape[1] < end:
            self._positions = torch.arange(2 * end, device=self._positions.device)[None]
            self._masks = {}
        wide = self._masks.get(num_new)
        if wide is None:
            wide = self._wide(num_new)
        # narrow() is the same as a slice, and twice as fast.
        return self._positions.narrow(1, start, num_new), wide.narrow(3, wide.shape[3] - end, end)

    def _wide(self, num_new: int) -> Tensor:
        """Zeros, then the causal triangle: every narrower mask is a suffix of its columns."""
        width = self._positions.shape[1]
        attend = causal([width], num_new, self._positions.device)
        wide = additive(attend, self._dtype)
        if num_new <= 64:  # the masks of long prompts are large, and seldom asked for twice
            self._masks[num_new] = wide
        return wide


def additive(attend: Tensor, dtype: torch.dtype) -> Tensor:  # [B, M, L] bool -> [B, 1, M, L]
    """0 where attention is allowed, the type's lowest number elsewhere."""
    mask = torch.zeros(attend.shape, dtype=dtype, device=attend.device)
    return mask.masked_fill_(~attend, torch.finfo(dtype).min).unsqueeze(1)


def causal(starts: Sequence[int], num_new: int, device: torch.device) -> Tensor:
    """Each new cell sees its row up to itself. Two rows with 3 and 1 cached cells, M = 2:

    row 0: x x x x .     row 1: x x . . .
           x x x x x            x x x . .
    """  # returns [B, M, L] bool
    columns = torch.arange(max(starts) + num_new, device=device)
    last = on_device(list(starts), device)[:, None] + torch.arange(num_new, device=device)
    return columns <= last[:, :, None]


def whole_prompts(lengths: Tensor, longest: int) -> Tensor:  # [B] -> [B, 1, longest] bool
    """Each token of a prompt sees all of it, and so does the padding behind it."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None, None]


def prefix_lm(lengths: Tensor, num_tokens: int) -> Tensor:  # [B] -> [B, T, T] bool
    """Each token sees its row's prompt of `lengths[b]` tokens, and its row up to itself.

    A prompt of 2 tokens and 3 behind it:

    x x . . .
    x x . . .
    x x x . .
    x x x x .
    x x x x x
    """
    causal_mask = causal([0], num_tokens, lengths.device)
    return causal_mask | whole_prompts(lengths, num_tokens)


def sight_of(
    prompt_lengths: Tensor, num_tokens: int, dtype: torch.dtype
) -> dict[str, Tensor]:  # of [B]
    """Return what makes a stock model read whole texts [B, T] as a prefix LM."""
    seen = prefix_lm(prompt_lengths, num_tokens)
    # Some models would count positions by their mask.
    positions = torch.arange(num_tokens, device=seen.device).repeat(len(seen), 1)
    return {"attention_mask": additive(seen, dtype), "position_ids": positions}


def trees(
    starts: Sequence[int], ancestors: Sequence[Sequence[Sequence[bool]]], device: torch.device
) -> Tensor:
    """Each node sees the cached cells of its row, its ancestors and itself; padding sees itself.

    `starts[b]` cells are cached in row b, and `ancestors[b]` is `CandidateTree.ancestors()`.
    """  # returns [B, M, L] bool
    num_new = max(len(rows) for rows in ancestors)
    attend = torch.zeros(len(starts), num_new, max(starts) + num_new, dtype=torch.bool)
    attend |= torch.arange(attend.shape[2]) < torch.tensor(list(starts))[:, None, None]
    for index, (start, rows) in enumerate(zip(starts, ancestors, strict=True)):
        attend[index, : len(rows), start : start + len(rows)] = torch.tensor(rows)
        for padding in range(len(rows), num_new):
            attend[index, padding, start + padding] = True
    return sent(attend, device)


def nodes(
    starts: Sequence[int],
    behind: Sequence[int],
    sights: Sequence[Sequence[Sequence[int]]],
    device: torch.device,
) -> Tensor:
    """Each new cell sees the text of its row and those cells behind it that it names.

    Row b has `starts[b]` cells of text, then `behind[b]` others, then the new ones; `sights[b][i]`
    are the cells behind the text that new cell i sees, itself among them. Padding sees itself.
    """  # returns [B, M, L] bool
    num_new = max(map(len, sights))
    ends = [start + more for start, more in zip(starts, behind, strict=True)]
    attend = torch.zeros(len(starts), num_new, max(ends) + num_new, dtype=torch.bool)
    for index, (start, end, rows) in enumerate(zip(starts, ends, sights, strict=True)):
        for cell, seen in enumerate(rows):
            attend[index, cell, :start] = True
            attend[index, cell, [start + place for place in seen]] = True
        for padding in range(len(rows), num_new):
            attend[index, padding, end + padding] = True
    return sent(attend, device)

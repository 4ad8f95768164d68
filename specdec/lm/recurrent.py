"""Models with recurrent layers: linear attention, state spaces, convolutions, beside attention."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from specdec.core.protocols import Forward
from specdec.core.values import Layer
from specdec.lm.cache import cache_word
from specdec.lm.hf import HFCausalLM, head_shape, without_gradients
from specdec.lm.layer_kinds import is_recurrent, layer_kinds
from specdec.lm.new_cells import NewCells
from specdec.lm.placement import device_of
from specdec.lm.recurrent_cache import RecurrentCache
from specdec.runtime.agreement import TOLERANCE, relative_difference

# More tokens that are to be read again get a forward of their own, which leaves states behind them;
# fewer are read with the new ones. See docs/recurrent.md for what that costs.
MOST_AGAIN = 16


class RecurrentLM(HFCausalLM):
    """Chains of candidates for models whose layers keep states; see `RecurrentCache`.

    Args:
        model: see `HFCausalLM`, as for the other arguments.
    """

    may_forget = False
    reads_whole = "its layers keep states, which are rewound by whole steps alone"
    _cache: RecurrentCache

    def __init__(self, model: PreTrainedModel, *given: Any, **named: Any):
        config = model.config.get_text_config()
        self._kinds = layer_kinds(config)
        self._num_states = int(getattr(config, "number_of_conv_states", 1))
        self._goes_on = goes_on(model)
        self._least = 2 if bounds_time_steps(model) else 1
        super().__init__(model, *given, **named)
        if not self._goes_on:  # prompts in one piece: from nothing, all of them start alike
            self._prefill_chunk = self.max_length

    def open(self, num_rows: int, capacity: int) -> None:
        """Start afresh with empty rows."""
        super().open(num_rows, capacity)
        self._reread = [0] * num_rows

    def reread(self, row: int) -> int:
        """Return how many tokens of a row the last forward read once more."""
        return self._reread[row]

    def _new_cache(self, num_rows: int, capacity: int) -> RecurrentCache:
        return RecurrentCache(self._kinds, self._num_states, num_rows, capacity)

    @property
    def state_bytes(self) -> int:
        """The bytes of one row's states, once the model has read; they do not grow with it."""
        return self._cache.state_bytes

    @without_gradients
    def prefill(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], layers: Sequence[Layer] = ()
    ) -> list[dict[Layer, Tensor]]:
        """Append text to rows, those of one length at a time, since padding would enter states."""
        found: dict[int, dict[Layer, Tensor]] = {}
        for length in sorted(set(map(len, token_ids))):
            alike = [index for index, ids in enumerate(token_ids) if len(ids) == length]
            texts = [token_ids[index] for index in alike]
            states = super().prefill([rows[index] for index in alike], texts, layers)
            found |= zip(alike, states, strict=True)
        return [found[index] for index in range(len(rows))]

    def expect(self, num_tokens: int) -> None:
        """Stay as it is: there are no programs for states."""

    def _run(self, module: torch.nn.Module, cells: NewCells, layers: Sequence[Layer]) -> Forward:
        """Read new tokens, and before them those behind which no states were kept."""
        starts = [self._cache.lengths[row] for row in cells.rows]
        cells.require_chain(starts, self.max_length - 1, self.tree_refusal)
        for row in cells.rows:
            self._reread[row] = self._cache.lag(row)
        self._catch_up(cells.rows)
        return self._read(module, cells, layers)

    def _catch_up(self, rows: Sequence[int]) -> None:
        """Read again what has become too much to be read with each step."""
        lags = {row: self._cache.lag(row) for row in rows}
        for lag in sorted({each for each in lags.values() if each > MOST_AGAIN}):
            alike = [row for row in rows if lags[row] == lag]
            nothing = torch.zeros(len(alike), 0, dtype=torch.int64, device=self.device)
            self._read(self.model.base_model, NewCells(alike, nothing), ())

    def _read(self, module: torch.nn.Module, cells: NewCells, layers: Sequence[Layer]) -> Forward:
        cache, rows, num_new = self._cache, cells.rows, cells.num_new
        lengths = [cache.lengths[row] + num_new for row in rows]
        lags = [cache.lag(row) for row in rows]
        unread = cache.texts(rows, cells.token_ids)
        missing = max(0, self._least - unread.shape[1])
        unread = torch.nn.functional.pad(unread, (0, missing))
        if self._goes_on or not any(cache.lengths[row] for row in rows):
            pieces = [unread]
        else:
            pieces = list(unread.split(1, dim=1))
        found: list[Forward] = []
        for piece in pieces:
            found.append(super()._run(module, NewCells(rows, piece), layers))
            cache.noted(rows, lengths, piece.shape[1])
        joined = _joined(found)
        return joined if unread.shape[1] == num_new else _new_ones(joined, lags, num_new)


def causal_lm(model: PreTrainedModel, *given: Any, **named: Any) -> HFCausalLM:
    """Put a model behind a cache of all its cells, and of states where it has such."""
    kind = RecurrentLM if is_recurrent(model.config) else HFCausalLM
    return kind(model, *given, **named)


# Each model is asked once, however often it is put behind a cache.
_going_on: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def goes_on(model: PreTrainedModel) -> bool:
    """Whether several tokens are read from the states that are there; some start from none.

    Models of the first Mamba do, unless it is a single token: they read one after another.
    """
    if model not in _going_on:
        _going_on[model] = _says_the_same(model)
    return _going_on[model]


def bounds_time_steps(model: PreTrainedModel) -> bool:
    """Whether the steps of a state space are bounded: Nemotron-H, Zamba2.

    Where a single token is read, transformers and the kernels that it uses leave the bound out. So
    that all ways of decoding read by one rule, such a token is read with another one behind it, of
    which nothing is kept.
    """
    bounds = (getattr(module, "time_step_limit", None) for module in model.modules())
    return any(each is not None and tuple(each) != (0.0, float("inf")) for each in bounds)


@torch.inference_mode()
def _says_the_same(model: PreTrainedModel) -> bool:
    """Compare a text in two pieces with the same text in one, in the stock model's own cache."""
    token_ids = torch.arange(1, 9, device=device_of(model))[None] % head_shape(model)[0]
    places = torch.arange(8, device=device_of(model))[None]
    given: dict[str, Any] = {cache_word(model.forward): DynamicCache(config=model.config)}
    given["use_cache"] = True
    model(input_ids=token_ids[:, :4], position_ids=places[:, :4], **given)
    behind = model(input_ids=token_ids[:, 4:], position_ids=places[:, 4:], **given).logits[0]
    whole = model(input_ids=token_ids, use_cache=False).logits[0, 4:]
    return relative_difference(behind, whole) <= TOLERANCE[model.dtype]


def _joined(found: Sequence[Forward]) -> Forward:
    """Put what was read one token after another side by side."""
    if len(found) == 1:
        return found[0]
    logits = [each.logits for each in found]
    joined = torch.cat(logits, dim=1) if logits[0].numel() else logits[0]
    layers = found[0].hidden
    hidden = {layer: torch.cat([each.hidden[layer] for each in found], dim=1) for layer in layers}
    return Forward(joined, hidden)


def _new_ones(found: Forward, lags: Sequence[int], num_new: int) -> Forward:
    """Return what is said of the M new tokens of each row, behind as many others as it lags."""

    def cut(said: Tensor) -> Tensor:  # [B, W, ...] -> [B, M, ...]
        rows = zip(said, lags, strict=True)
        return torch.stack([row[lag : lag + num_new] for row, lag in rows])

    logits = cut(found.logits) if found.logits.numel() else found.logits
    return Forward(logits, {layer: cut(each) for layer, each in found.hidden.items()})

"""What a model takes and what it has, by its configuration alone: no weights, no tokenizer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel

from specdec.cache.policy import bytes_of
from specdec.core.errors import UserError, require, require_int
from specdec.lab.description.lines import in_columns, lines_of
from specdec.lm.accounting import (
    LayerCache,
    Unaccounted,
    Weights,
    cells_of,
    stock_cells_of,
    stock_kept,
    weights_of,
)
from specdec.lm.checkpoint import Checkpoint
from specdec.lm.devices import DTYPES, checked_device, memory_of, require_dtype, settled_dtype
from specdec.lm.from_checkpoint import weightless
from specdec.lm.layer_kinds import is_recurrent
from specdec.lm.loadable import refuse_unsupported, room_for
from specdec.lm.traits import Traits, traits_of


@dataclass(frozen=True)
class Description:
    """What a model takes in memory, what it has, and whether it can be decoded with here.

    Args:
        model: as it was named.
        traits: attention, positions, windows and experts.
        dtype: of weights and cells.
        weights: parameters and their bytes.
        layers: what each layer keeps of a text; None: `cache_remark` says why nobody knows.
        stock_cells: how many cells of `context` transformers' own cache keeps, layer by layer.
        max_length: tokens of context that the model reads; None: it has no such limit.
        context: tokens of a request.
        batch: requests in flight.
        memory_bytes: of the device.
        refused: why specdec does not decode with it; None: nothing in its configuration is against
            that.
        cache_remark: why it is transformers' own cache that is described, or none; None: it is
            ours.
        rounded: how config.json says that the weights are rounded, which is not counted here.
    """

    model: str
    traits: Traits
    dtype: str
    weights: Weights
    layers: tuple[LayerCache, ...] | None
    stock_cells: tuple[int, ...] | None
    max_length: int | None
    context: int
    batch: int
    memory_bytes: int
    refused: str | None
    cache_remark: str | None
    rounded: str | None

    @property
    def weight_bytes(self) -> int:
        """Bytes of parameters and buffers."""
        return self.weights.num_bytes + self.weights.buffer_bytes

    @cached_property
    def cell_bytes(self) -> int | None:
        """Bytes of the cache per token, all layers together."""
        return None if self.layers is None else sum(each.cell_bytes for each in self.layers)

    @cached_property
    def state_bytes(self) -> int | None:
        """Bytes of a request that do not grow with its text."""
        return None if self.layers is None else sum(each.state_bytes for each in self.layers)

    @property
    def request_bytes(self) -> int | None:
        """Bytes of the cache of a request of `context` tokens."""
        if self.cell_bytes is None or self.state_bytes is None:
            return None
        return self.cell_bytes * self.context + self.state_bytes

    @property
    def cache_bytes(self) -> int | None:
        """Bytes of the cache of the whole batch."""
        return None if self.request_bytes is None else self.batch * self.request_bytes

    @property
    def stock_bytes(self) -> int | None:
        """Bytes of a request in transformers' own cache, which lets go what a window passed."""
        if self.stock_cells is None or self.layers is None:
            return None
        pairs = zip(self.stock_cells, self.layers, strict=True)
        return sum(kept * each.cell_bytes + each.state_bytes for kept, each in pairs)

    @property
    def most_requests(self) -> int | None:
        """How many requests of `context` fit the memory beside the weights; None: nobody knows."""
        if self.request_bytes is None:
            return None
        room = self.memory_bytes - self.weight_bytes
        return max(room, 0) // self.request_bytes if self.request_bytes else None

    def __str__(self) -> str:
        """Return what `specdec-describe` prints."""
        return in_columns(lines_of(self))

    def numbers(self) -> dict[str, Any]:
        """Return all of it as plain values, fit for JSON."""
        derived = ("weight_bytes", "cell_bytes", "state_bytes", "request_bytes", "cache_bytes")
        names = (*derived, "stock_bytes", "most_requests")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}


def describe(
    checkpoint: Checkpoint,
    context: int | None = None,
    batch: int = 1,
    dtype: str = "float32",
    device: str = "cpu",
    memory: int | str | None = None,
) -> Description:
    """Account for a model, and look at what it is made of.

    Args:
        checkpoint: where its `config.json` lies.
        context: tokens of a request; None: as many as the model reads.
        batch: requests in flight.
        dtype: of weights and cells: float32, bfloat16, float16, or auto.
        device: whose memory counts.
        memory: bytes, or "80GiB", in place of the device's own.

    Raises:
        UserError: no such model, or an option is wrong.
    """
    require_dtype(dtype)
    require_int("batch", batch, 1)
    there = checked_device(device)
    own = memory_of(there) if memory is None else bytes_of(memory, "memory")
    refused = _refusal(checkpoint)
    limit = _declared(checkpoint)
    if refused is None and limit is not None:
        limit = room_for(checkpoint).tokens
    length = _context(context, limit)
    kind = settled_dtype(dtype, there)
    model = weightless(checkpoint, DTYPES[kind])
    layers, remark = _layers(model, refused)
    return Description(
        model=checkpoint.path,
        traits=traits_of(model, layers),
        dtype=kind,
        weights=weights_of(model),
        layers=None if layers is None else tuple(layers),
        stock_cells=_stock(model, layers, length) if remark is None else None,
        max_length=limit,
        context=length,
        batch=batch,
        memory_bytes=own,
        refused=refused,
        cache_remark=remark,
        rounded=_rounded(checkpoint),
    )


def _refusal(checkpoint: Checkpoint) -> str | None:
    """Return why nothing is decoded with a model, in the words of the loader."""
    try:
        refuse_unsupported(checkpoint.config, checkpoint.called)
    except UserError as error:
        return str(error)
    return None


def _declared(checkpoint: Checkpoint) -> int | None:
    """Return the context that a configuration says, before any scaling; None: it says none."""
    whole: Any = checkpoint.config
    config = whole.get_text_config(decoder=True)
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def _context(context: object, limit: int | None) -> int:
    """Return the tokens of a request.

    Raises:
        UserError: the model does not read so many, or says no number itself.
    """
    if context is None:
        require(limit is not None, "context", context, "tokens of a request, context=4096")
        assert limit is not None
        return limit
    require_int("context", context, 1)
    assert isinstance(context, int)
    if limit is not None:
        require(context <= limit, "context", context, f"at most {limit}, which the model reads")
    return context


def _layers(
    model: PreTrainedModel, refused: str | None
) -> tuple[Sequence[LayerCache] | None, str | None]:
    """Return what layers keep, in our cache or else in transformers' own, and why not in ours.

    States of recurrent layers are those of transformers in any case.
    """
    remark = None if refused is None else "ours does not hold its layers"
    try:
        if refused is None and not is_recurrent(model.config):
            return cells_of(model), None
    except Unaccounted as error:
        remark = str(error)
    try:
        return stock_cells_of(model), remark
    except Unaccounted as error:
        return None, remark or str(error)


def _stock(
    model: PreTrainedModel, layers: Sequence[LayerCache] | None, length: int
) -> tuple[int, ...] | None:
    return None if layers is None else tuple(stock_kept(model.config, layers, length))


def _rounded(checkpoint: Checkpoint) -> str | None:
    found = getattr(checkpoint.config, "quantization_config", None)
    if found is None:
        return None
    return str(dict(found).get("quant_method", "unknown"))

"""Any stock encoder-decoder model of transformers (t5, bart, marian, ...) behind `CausalLM`.

The encoder reads a source once, and each layer's cross-attention makes keys and values of it once:
these are the first cells of a row. The decoder's text has the cells behind them. So a row has one
cell for each token of a request but the last, as with any other model, and nobody who decodes needs
to know of sources.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from specdec.core.errors import UserError
from specdec.core.on_device import on_device
from specdec.core.protocols import Forward
from specdec.core.values import Layer
from specdec.lm import mask
from specdec.lm.batch import pad
from specdec.lm.cache import RowCache
from specdec.lm.encoder import Encoder
from specdec.lm.hf import HFCausalLM, without_gradients
from specdec.lm.rows_alike import Alike, side_by_side
from specdec.lm.source_cache import Cells, SourceCache
from specdec.lm.source_room import num_decoder_layers, room_of, start_id_of
from specdec.runtime.choice import AUTO, EAGER

# Cells of a row, before it grows: nobody says how long a text without its source is.
FIRST_CAPACITY = 64


class EncoderDecoderLM(HFCausalLM):
    """A transformers model with an encoder; see `SourceReader`.

    `prefill` on an empty row takes its source, and then text. Stock decoders count positions from
    the length of their cache, one number for a whole batch: rows whose new cells do not stand at
    the same positions go through one forward after another.

    Args:
        model: of transformers, on its device and in its type.
        tokenizer: its own; None: requests are of token ids.
        tree_error: the largest difference of logits when it was proven; None: it was not.
        states_differ: why hidden states cannot be read; None: they can.
        max_length: tokens of the source, and of the text; None: what the configuration says.
        runtime: eager, or auto, which means eager here.

    Raises:
        UserError: nothing says what the decoder's text begins with.
    """

    may_forget = False
    reads_whole = "it has an encoder, and a decoder that counts positions from its cache"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        tree_error: float | None = None,
        states_differ: str | None = None,
        max_length: int | None = None,
        runtime: str = EAGER,
    ):
        assert runtime in (EAGER, AUTO)
        room = room_of(model.config, max_length)
        assert room.source is not None
        self.max_source, self.max_target = room.source, room.tokens
        self.start_id = start_id_of(model)
        self.encoder = Encoder(model)
        whole = room.source + room.tokens
        super().__init__(model, tokenizer, tree_error, states_differ, whole)

    def open(self, num_rows: int, capacity: int) -> None:
        """Start afresh with empty rows; buffers are used again."""
        self.num_calls = self.num_cells = 0
        cache = getattr(self, "_cache", None)
        if cache is None or len(cache.lengths) != num_rows:
            num_layers = num_decoder_layers(self.model.config)
            self._cache = RowCache(num_layers, num_rows, min(capacity, FIRST_CAPACITY))
            self._sources = SourceCache(num_layers, num_rows)
        self._cache.lengths = [0] * num_rows
        self._sources.lengths = [0] * num_rows

    def share_encoder(self, draft: "EncoderDecoderLM") -> None:
        """Let a draft model take what the encoder said of a source, if its own would say the same.

        Then a source is encoded once, and each of both makes cells of its own of that.
        """
        if draft.encoder is not self.encoder and draft.encoder.is_like(self.encoder):
            self.encoder.is_shared = True
            draft.encoder = self.encoder

    def encode(self, text: str) -> list[int]:
        """Turn a source into token ids, and begin the decoder's text behind it."""
        return [*super().encode(text), self.start_id]

    def length(self, row: int) -> int:
        """Return the number of cells of a row: of its source, and of the text behind it."""
        return self._sources.lengths[row] + self._cache.lengths[row]

    @without_gradients
    def keep(self, row: int, prefix: int, nodes: Sequence[int] = ()) -> None:
        """Keep a row's first `prefix` cells and, of those behind, only the ones listed."""
        source = self._sources.lengths[row]
        if prefix < source:
            assert prefix == 0, "sources are kept whole"
            assert not nodes
            self._sources.lengths[row] = source = 0
        self._cache.keep(row, prefix - source, nodes)

    @without_gradients
    def prefill(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], layers: Sequence[Layer] = ()
    ) -> list[dict[Layer, Tensor]]:
        """Give empty rows their source, others more text; see `CausalLM.prefill`.

        A source has no states of the decoder.
        """
        given = dict(zip(rows, token_ids, strict=True))
        fresh = [row for row in rows if not self._sources.lengths[row] and given[row]]
        if fresh:
            self._read_sources(fresh, [given[row] for row in fresh])
        more = [row for row in rows if row not in fresh and given[row]]
        found = {row: dict.fromkeys(layers, self._joined([])) for row in rows}
        if not more:
            return [found[row] for row in rows]
        before = [self.length(row) for row in more]
        hidden = self.forward(more, pad([given[row] for row in more], self.device), layers=layers)
        for number, (row, start) in enumerate(zip(more, before, strict=True)):
            num_new = len(given[row])
            self.keep(row, start + num_new)  # without the padding
            found[row] = {each: hidden.hidden[each][number, :num_new] for each in layers}
        return [found[row] for row in rows]

    def _read_sources(self, rows: Sequence[int], sources: Sequence[Sequence[int]]) -> None:
        """Run the encoder, and let each layer's cross-attention make its cells of what it says.

        The layers do so when the decoder is run; what becomes of the token that it reads for that
        is dropped.
        """
        self._sources.place(rows, list(map(len, sources)))
        seen = self._sources.mask(rows, self.device)
        encoded = self.encoder.read(sources, seen)
        first = torch.full((len(rows), 1), self.start_id, device=self.device)
        alone = first.new_ones(len(rows), 1, 1, dtype=torch.bool)
        self._cache.place(rows, 1, self.device)
        cells = Cells(self._cache, self._sources, 0, known=False)
        self._ask(cells, first, alone, encoded, self._if_padded(rows, seen))
        self.num_cells += seen.numel()
        self._width = encoded.shape[2]

    @without_gradients
    def forward(
        self,
        rows: Sequence[int],
        token_ids: Tensor,
        positions: Tensor | None = None,
        attend: Tensor | None = None,
        layers: Sequence[Layer] = (),
    ) -> Forward:
        """Append M cells to each row and return their logits; see `CausalLM.forward`.

        Raises:
            UserError: they are a tree with branches, and the model reads chains alone.
        """
        shape = token_ids.shape
        found: list[tuple[Alike, Any]] = []
        for alike in self._alike(rows, shape[1], positions):
            found.append((alike, self._read(alike, token_ids, attend, layers)))
        if len(found) == 1 and found[0][0].num_new == shape[1]:
            output = found[0][1]
            return Forward(output.logits, {layer: _states(output, layer) for layer in layers})
        return Forward(
            side_by_side([(alike, output.logits) for alike, output in found], shape),
            {
                layer: side_by_side(
                    [(alike, _states(output, layer)) for alike, output in found], shape
                )
                for layer in layers
            },
        )

    def _alike(self, rows: Sequence[int], num_new: int, positions: Tensor | None) -> list[Alike]:
        """Sort rows by where their new cells stand."""
        last = self.max_target - 1
        given = None if positions is None else positions.tolist()
        found: dict[tuple[int, ...], Alike] = {}
        for place, row in enumerate(rows):
            source, start = self._sources.lengths[row], self._cache.lengths[row]
            assert source, "a row begins with its source"
            standing = list(range(start, start + num_new))
            if given is not None and [each - source for each in given[place]] != standing:
                # Only padding can stand before the beginning, or behind the end.
                standing = [min(max(0, each - source), last) for each in given[place]]
            else:
                standing = [each for each in standing if each <= last]
            alike = found.setdefault((start, *standing), Alike(start, standing, [], []))
            alike.rows.append(row)
            alike.places.append(place)
        return list(found.values())

    def _read(
        self, alike: Alike, token_ids: Tensor, attend: Tensor | None, layers: Sequence[Layer]
    ) -> Any:
        """Run one forward for rows that stand alike."""
        rows, start, num_new = alike.rows, alike.start, alike.num_new
        if self.no_trees is not None and not alike.follows:
            kind = self.model.config.model_type
            raise UserError(f"{kind} cannot read trees, since {self.no_trees}; expected tree=chain")
        if len(rows) < len(token_ids) or num_new < token_ids.shape[1]:
            token_ids = token_ids[on_device(alike.places, self.device), :num_new]
        if attend is None:
            seen = mask.causal([start] * len(rows), num_new, self.device)
        else:
            sources = [self._sources.lengths[row] for row in rows]
            seen = torch.stack(
                [
                    attend[place, :num_new, source : source + start + num_new]
                    for place, source in zip(alike.places, sources, strict=True)
                ]
            )
        self._cache.place(rows, num_new, self.device)
        self._sources.show(rows)
        known = self._sources.mask(rows, self.device)
        # Of what the encoder said only the shape is still looked at.
        unread = torch.zeros(1, dtype=self.model.dtype, device=self.device)
        cells = Cells(self._cache, self._sources, alike.standing_on(self.device), known=True)
        output = self._ask(
            cells,
            token_ids,
            seen,
            unread.expand(*known.shape, self._width),
            self._if_padded(rows, known),
            layers,
        )
        for row in rows:
            self._cache.lengths[row] = start + num_new
        return output

    def _if_padded(self, rows: Sequence[int], source_mask: Tensor) -> Tensor | None:
        """Return the mask of sources where one is shorter than another."""
        return source_mask if len({self._sources.lengths[row] for row in rows}) > 1 else None

    def _ask(
        self,
        cells: Cells,
        token_ids: Tensor,  # [B, M]
        seen: Tensor,  # [B, M, L] bool
        encoded: Tensor,  # [B, S, H]
        source_mask: Tensor | None,  # [B, S]; None: nothing is padding
        layers: Sequence[Layer] = (),
    ) -> Any:
        self.num_calls += 1
        self.num_cells += token_ids.numel()
        return self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=source_mask,
            decoder_input_ids=token_ids,
            decoder_attention_mask=mask.additive(seen, self.model.dtype),
            **{self._cache_word: cells},
            use_cache=True,
            output_hidden_states=bool(layers),
        )


def share_encoder(verifier: object, proposer: object) -> None:
    """Let a draft model share the verifier's encoder, where both have the same."""
    draft = getattr(proposer, "model", None)
    if isinstance(verifier, EncoderDecoderLM) and isinstance(draft, EncoderDecoderLM):
        verifier.share_encoder(draft)


def _states(output: Any, layer: Layer) -> Tensor:  # [B, M, H]
    """Return a decoder layer's states; see `specdec.runtime.program.hidden_of`."""
    hidden_states: Sequence[Tensor] = output.decoder_hidden_states
    if layer == "final":
        return hidden_states[-1]
    assert isinstance(layer, int)
    assert 0 <= layer < len(hidden_states) - 2
    return hidden_states[layer + 1]

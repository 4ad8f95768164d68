"""A stand-in for the verifier that always says what a text says next: decoding becomes replay."""

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from specdec.core.protocols import Forward
from specdec.core.values import Layer
from specdec.replay.texts import Text


class TextLM:
    """A `CausalLM` that is certain of the next token of a recorded text.

    Requests must be the texts' prompts, in the order of the texts. Whatever is decoded with it
    emits the texts again; in a tree only what lies on the text has a meaning, and nothing else is
    ever reached. `states` are the hidden states that proposers ask for, of each text's tokens but
    the last: per layer [L, H].
    """

    def __init__(
        self,
        texts: Sequence[Text],
        vocab_size: int,
        max_length: int,
        states: Sequence[Mapping[Layer, Tensor]] | None = None,
        device: torch.device | None = None,
    ):
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.device = device or torch.device("cpu")
        self._texts = [(*text.prompt_ids, *text.output_ids) for text in texts]
        self._states = states
        self._waiting: deque[int] = deque()
        self._text_of: dict[int, int] = {}
        self._lengths: dict[int, int] = {}

    def open(self, num_rows: int, capacity: int) -> None:
        """Begin with the first text."""
        self._waiting = deque(range(len(self._texts)))
        self._lengths = dict.fromkeys(range(num_rows), 0)

    def length(self, row: int) -> int:
        """Return the number of cells of a row."""
        return self._lengths[row]

    def prefill(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], layers: Sequence[Layer] = ()
    ) -> list[dict[Layer, Tensor]]:
        """Take up the next text in each row."""
        found: list[dict[Layer, Tensor]] = []
        for row, ids in zip(rows, token_ids, strict=True):
            self._text_of[row] = self._waiting.popleft()
            assert self._texts[self._text_of[row]][: len(ids)] == tuple(ids), "another prompt"
            self._lengths[row] = len(ids)
            found.append({layer: self._of(row, layer)[: len(ids)] for layer in layers})
        return found

    def forward(
        self,
        rows: Sequence[int],
        token_ids: Tensor,
        positions: Tensor | None = None,
        attend: Tensor | None = None,
        layers: Sequence[Layer] = (),
    ) -> Forward:
        """Append cells; after each, be certain of what the text has behind its position."""
        num_rows, width = token_ids.shape
        starts = torch.tensor([[self._lengths[row]] for row in rows])
        places = starts + torch.arange(width) if positions is None else positions.cpu()
        logits = torch.full((num_rows, width, self.vocab_size), float("-inf"))
        for index, row in enumerate(rows):
            text = self._texts[self._text_of[row]]
            for cell, place in enumerate(places[index].tolist()):
                logits[index, cell, text[min(place + 1, len(text) - 1)]] = 0.0
            self._lengths[row] += width
        hidden = {
            layer: torch.stack(
                [
                    self._of(row, layer)[places[index].clamp(max=len(self._of(row, layer)) - 1)]
                    for index, row in enumerate(rows)
                ]
            )
            for layer in layers
        }
        return Forward(logits.to(self.device), hidden)

    def _of(self, row: int, layer: Layer) -> Tensor:  # [L, H]
        assert self._states is not None, "the proposer reads hidden states"
        return self._states[self._text_of[row]][layer]

    def keep(self, row: int, prefix: int, nodes: Sequence[int] = ()) -> None:
        """Rewind a row."""
        self._lengths[row] = prefix + len(nodes)

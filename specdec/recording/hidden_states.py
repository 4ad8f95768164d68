"""What the verifier makes of texts, for proposers that read its hidden states."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.protocols import CausalLM, SourceReader, WholePrompts
from specdec.core.trace import TextKey
from specdec.core.values import Layer
from specdec.recording.texts import Text


class States:
    """The verifier's hidden states along texts, read once for all arms; on the CPU meanwhile."""

    def __init__(self, verifier: CausalLM, batch: int = 16):
        self._verifier = verifier
        self._batch = batch
        self._found: dict[tuple[TextKey, Layer], Tensor] = {}

    def of(
        self, text: Text, layers: Sequence[Layer], neighbours: Iterable[Text]
    ) -> dict[Layer, Tensor]:  # of [L, H]
        """Return those of a text's tokens but the last.

        `neighbours`, of which the text is the first, will be asked for as well.
        """
        if any((text.key, layer) not in self._found for layer in layers):
            self._read(list(islice(neighbours, self._batch)), layers)
        return {layer: self._found[text.key, layer].to(self._verifier.device) for layer in layers}

    def know(self, text: Text, states: Mapping[Layer, Tensor]) -> None:
        """Take up the states [L, H] of a text's tokens but the last, by layer."""
        for layer, state in states.items():
            self._found[text.key, layer] = state

    def _require_states(self) -> None:
        """Refuse a verifier with an encoder: the tokens of a source have no states of a decoder."""
        if isinstance(self._verifier, SourceReader):
            raise UserError(
                "proposer: heads on the states of an encoder-decoder verifier are decoded with,"
                " and not replayed: a source has no states of the decoder; expected decode"
            )

    @torch.inference_mode()
    def _read(self, texts: Sequence[Text], layers: Sequence[Layer]) -> None:
        self._require_states()
        verifier = self._verifier
        most = max(len(text.prompt_ids) + len(text.output_ids) for text in texts)
        verifier.open(len(texts), most)
        states = states_along(verifier, texts, layers)
        for text, found in zip(texts, states, strict=True):
            for layer, state in found.items():
                self._found[text.key, layer] = state.cpu()


def states_along(
    verifier: CausalLM, texts: Sequence[Text], layers: Sequence[Layer]
) -> list[dict[Layer, Tensor]]:  # of [L, H]
    """Read texts into empty rows, the first ones; return the states of all tokens but the last."""
    rows = range(len(texts))
    if not isinstance(verifier, WholePrompts):
        whole = [[*text.prompt_ids, *text.output_ids][:-1] for text in texts]
        return verifier.prefill(rows, whole, layers)
    prompts = verifier.begin(rows, [text.prompt_ids for text in texts], layers)
    behind = [[text.prompt_ids[-1], *text.output_ids[:-1]] for text in texts]
    others = verifier.prefill(rows, behind, layers)
    pairs = zip(prompts, others, strict=True)
    return [{layer: torch.cat([a[layer], b[layer]]) for layer in layers} for a, b in pairs]

"""Replay by decoding on the text: only the drafting is done, and only where steps begin.

Where nothing is left to chance once the text is given, decoding it again is replay: point masses
are accepted as far as the text follows them, whatever the rule; and with `match` candidates of any
kind are, since the text is the verifier's own draw, which knew nothing of them. So the loop itself
runs, with a verifier that is certain of the text. What is drawn (candidates under `match`) is drawn
anew: the result is one sample of what decoding would count, and not its mean.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.core.errors import Unfit
from specdec.core.protocols import CausalLM, Proposer
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.core.values import Draw, Layer
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.replay.text_lm import TextLM
from specdec.replay.texts import Text
from specdec.verification.match import Match

TEXTS_AT_ONCE = 64  # whose hidden states are kept
POINT_MASSES = ("rejection", "match")  # rules that follow the text wherever a candidate does


def require_jumps(rule: str, draw: Draw | None) -> None:
    """Refuse what depends on more than the text.

    Raises:
        Unfit: whether such candidates are accepted is decided by chance.
    """
    certain = draw in (None, Draw.DETERMINISTIC) and rule in POINT_MASSES
    if not certain and rule != "match":
        what = "candidates" if draw is None else f"{draw.value} candidates"
        raise Unfit(f"verification={rule}: {what} of this proposer cannot be replayed; decode them")


@torch.inference_mode()
def jump(
    texts: Sequence[Text],
    proposer: Proposer,
    verifier: CausalLM,
    sampling: Sampling,
    end_ids: frozenset[int],
    batch: int = 16,
    seed: int = 0,
    states: "States | None" = None,
) -> list[Trace]:
    """Return a trace of each text, as decoding with `proposer` might leave it, seconds aside.

    `verifier` reads the texts only if the proposer wants hidden states and `states` has none yet.
    """
    states = States(verifier, batch) if states is None else states
    groups: dict[int, list[Text]] = {}
    for text in texts:
        # A stop string has no end token; there the text is over when it is as long as it was.
        limit = len(text.output_ids) if text.finish_reason == "stop" else text.budget
        groups.setdefault(limit, []).append(text)
    traces: list[Trace] = []
    for limit, group in groups.items():
        for first in range(0, len(group), TEXTS_AT_ONCE):
            some = group[first : first + TEXTS_AT_ONCE]
            read = [states.of(text, proposer.layers, some) for text in some]
            reader = TextLM(some, verifier.vocab_size, verifier.max_length, read, verifier.device)
            stopping = Stopping(limit, end_ids)
            decoder = SpeculativeDecoder(reader, proposer, Match(), sampling, stopping, batch, seed)
            traces += decoder.decode([_request(text) for text in some])
    return traces


def _request(text: Text) -> Request:
    return Request(text.prompt_id, text.prompt_ids, text.category, text.turn)


class States:
    """The verifier's hidden states along texts, read once for all arms; on the CPU meanwhile."""

    def __init__(self, verifier: CausalLM, batch: int = 16):
        self._verifier = verifier
        self._batch = batch
        self._found: dict[tuple[str, int, Layer], Tensor] = {}

    def of(
        self, text: Text, layers: Sequence[Layer], neighbours: Sequence[Text]
    ) -> dict[Layer, Tensor]:  # of [L, H]
        """Return those of a text's tokens but the last; `neighbours` will be asked for as well."""
        name = text.prompt_id, text.turn
        if any((*name, layer) not in self._found for layer in layers):
            place = neighbours.index(text)
            self._read(neighbours[place : place + self._batch], layers)
        return {layer: self._found[*name, layer].to(self._verifier.device) for layer in layers}

    @torch.inference_mode()
    def _read(self, texts: Sequence[Text], layers: Sequence[Layer]) -> None:
        verifier = self._verifier
        read = [[*text.prompt_ids, *text.output_ids][:-1] for text in texts]
        verifier.open(len(texts), max(map(len, read)))
        states = verifier.prefill(range(len(texts)), read, layers)
        for text, found in zip(texts, states, strict=True):
            for layer, state in found.items():
                self._found[text.prompt_id, text.turn, layer] = state.cpu()

"""Replay by decoding on the text: only the drafting is done, and only where steps begin.

Where nothing is left to chance once the text is given, decoding it again is replay: point masses
are accepted as far as the text follows them, whatever the rule; and with `match` candidates of any
kind are, since the text is the verifier's own draw, which knew nothing of them. So the loop itself
runs, with a verifier that is certain of the text. What is drawn (candidates under `match`) is drawn
anew: the result is one sample of what decoding would count, and not its mean.
"""

from collections.abc import Sequence

import torch

from specdec.core.errors import Unfit
from specdec.core.protocols import CausalLM, Proposer
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.core.values import Draw
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
) -> list[Trace]:
    """Return a trace of each text, as decoding with `proposer` might leave it, seconds aside.

    `verifier` reads each text once if the proposer wants its hidden states, and else not at all.
    """
    groups: dict[int, list[Text]] = {}
    for text in texts:
        # A stop string has no end token; there the text is over when it is as long as it was.
        limit = len(text.output_ids) if text.finish_reason == "stop" else text.budget
        groups.setdefault(limit, []).append(text)
    traces: list[Trace] = []
    for limit, group in groups.items():
        for first in range(0, len(group), TEXTS_AT_ONCE):
            some = group[first : first + TEXTS_AT_ONCE]
            reader = _reader(some, proposer, verifier)
            stopping = Stopping(limit, end_ids)
            decoder = SpeculativeDecoder(reader, proposer, Match(), sampling, stopping, batch, seed)
            traces += decoder.decode([_request(text) for text in some])
    return traces


def _request(text: Text) -> Request:
    return Request(text.prompt_id, text.prompt_ids, text.category, text.turn)


def _reader(texts: Sequence[Text], proposer: Proposer, verifier: CausalLM) -> TextLM:
    states = [_states(text, proposer, verifier) for text in texts] if proposer.layers else None
    return TextLM(texts, verifier.vocab_size, verifier.max_length, states, verifier.device)


def _states(text: Text, proposer: Proposer, verifier: CausalLM) -> dict[int | str, torch.Tensor]:
    verifier.open(1, len(text.prompt_ids) + len(text.output_ids))
    read = [*text.prompt_ids, *text.output_ids][:-1]
    (found,) = verifier.prefill([0], [read], proposer.layers)
    return found

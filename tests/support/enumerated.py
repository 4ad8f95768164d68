"""What a decoder writes, enumerated: all random decisions of all steps, in every way."""

from collections.abc import Callable

import pytest

from specdec.decoding import request as request_module
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.proof.enumeration import BranchingStream, outcomes
from tests.support.toy import EnumeratedStream, TextDistribution, Tokens


def written(
    decoder: SpeculativeDecoder,
    prompt: Tokens,
    stream: Callable[[BranchingStream], object] = EnumeratedStream,
) -> TextDistribution:
    """Return the exact distribution of the text behind a prompt.

    `stream` makes what stands in the place of all random streams while the text is written once.
    """

    def play(branching: BranchingStream) -> Tokens:
        only = stream(branching)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(request_module, "RandomStream", lambda *key: only)
            return decoder.decode([Request("a", prompt)])[0].output_ids

    return outcomes(play)

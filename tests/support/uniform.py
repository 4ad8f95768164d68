"""Whether decoded texts have a model's distribution, where there is too much to enumerate."""

from collections.abc import Sequence

import specdec as sd
from specdec.lm.hf import HFCausalLM
from specdec.metrics.pit import Uniformity, uniformity
from specdec.recording.pit_values import Decoded, transforms
from tests.support.families import random_ids

NUM_TEXTS = 60


def drawn_texts(decoder: sd.SpeculativeDecoder) -> list[Decoded]:
    """Decode many prompts of unlike lengths."""
    requests = [sd.Request(str(n), random_ids(3 + n % 9, n)) for n in range(NUM_TEXTS)]
    return [
        Decoded(trace.prompt_id, request.token_ids, trace.output_ids)
        for trace, request in zip(decoder.decode(requests), requests, strict=True)
    ]


def fallen(texts: Sequence[Decoded], reader: HFCausalLM) -> Uniformity:
    """Test where the tokens fell in what a model says of plain text at temperature 1."""
    return uniformity([each[0].numpy() for each in transforms(texts, reader, sd.Sampling(1.0))])

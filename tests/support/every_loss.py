"""What tests of every loss share: the losses, and a text to learn by heart."""

import pytest

from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.hf import HFCausalLM
from specdec.proposer.none import NoProposer
from specdec.training.loss.cross_entropy import CrossEntropy
from specdec.training.loss.kl import KL
from specdec.training.loss.lk import LK
from specdec.training.loss.total_variation import TotalVariation
from specdec.verification.rejection import Rejection

LOSSES = [CrossEntropy(), KL(), TotalVariation(), LK()]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)


def greedy(verifier: HFCausalLM) -> tuple[list[int], list[int]]:
    """A prompt and what the verifier writes after it."""
    prompt = verifier.encode("def add(first")
    plain = SpeculativeDecoder(verifier, NoProposer(), Rejection(), Sampling(0), Stopping(40))
    (written,) = plain.decode([Request("a", prompt)])
    return list(prompt), list(written.output_ids)

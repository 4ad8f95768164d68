"""The verifier as a writer, of answers to train on or to measure acceptance along."""

from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.stopping import Stopping
from specdec.lm.hf import HFCausalLM
from specdec.proposer.none import NoProposer
from specdec.verification.rejection import Rejection


def writer(
    verifier: HFCausalLM, sampling: Sampling, max_new_tokens: int, batch: int, seed: int
) -> SpeculativeDecoder:
    """Return what decodes one token at a time, to the verifier's own ends."""
    stopping = Stopping.of(verifier, max_new_tokens)
    return SpeculativeDecoder(
        verifier, NoProposer(), Rejection(), sampling, stopping, batch=batch, seed=seed
    )

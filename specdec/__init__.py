"""Speculative decoding for research: proposers, trees, verification rules, and honest numbers.

import specdec as sd
verifier, draft = sd.load("zoo:verifier"), sd.load("zoo:draft")
proposer = sd.DraftModel(draft, sd.Chain(gamma=4))
decoder = sd.SpeculativeDecoder(verifier, proposer, sd.Rejection(), sd.Sampling(0.7),
                                sd.Stopping.of(verifier, max_new_tokens=64))
trace = decoder.decode([sd.Request("prompt", verifier.encode("import os"))])[0]
print(trace.output_text, sd.summarize([trace])["block_efficiency"])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specdec.core.errors import UserError as UserError
    from specdec.core.sampling import Sampling as Sampling
    from specdec.core.trace import Trace as Trace
    from specdec.decoding.decoder import SpeculativeDecoder as SpeculativeDecoder
    from specdec.decoding.request import Request as Request
    from specdec.decoding.stopping import Stopping as Stopping
    from specdec.lm.hf import HFCausalLM as HFCausalLM
    from specdec.lm.load import load as load
    from specdec.metrics import summarize as summarize
    from specdec.prompts import load_prompts as load_prompts
    from specdec.proposer.chained import Chained as Chained
    from specdec.proposer.draft_model import DraftModel as DraftModel
    from specdec.proposer.medusa import Medusa as Medusa
    from specdec.proposer.ngram import NGram as NGram
    from specdec.proposer.none import NoProposer as NoProposer
    from specdec.proposer.recorded import Recorded as Recorded
    from specdec.tree.calibrated import Calibrated as Calibrated
    from specdec.tree.chain import Chain as Chain
    from specdec.tree.sparse import Sparse as Sparse
    from specdec.verification.rejection import Rejection as Rejection

# Imported when first used: torch takes seconds, and `--help` should not wait for it.
_HOMES = {
    "UserError": "specdec.core.errors",
    "Sampling": "specdec.core.sampling",
    "Trace": "specdec.core.trace",
    "SpeculativeDecoder": "specdec.decoding.decoder",
    "Request": "specdec.decoding.request",
    "Stopping": "specdec.decoding.stopping",
    "HFCausalLM": "specdec.lm.hf",
    "load": "specdec.lm.load",
    "summarize": "specdec.metrics",
    "load_prompts": "specdec.prompts",
    "Chained": "specdec.proposer.chained",
    "DraftModel": "specdec.proposer.draft_model",
    "Medusa": "specdec.proposer.medusa",
    "NGram": "specdec.proposer.ngram",
    "NoProposer": "specdec.proposer.none",
    "Recorded": "specdec.proposer.recorded",
    "Calibrated": "specdec.tree.calibrated",
    "Chain": "specdec.tree.chain",
    "Sparse": "specdec.tree.sparse",
    "Rejection": "specdec.verification.rejection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'specdec' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)

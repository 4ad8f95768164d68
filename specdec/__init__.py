"""Speculative decoding for research: proposers, trees, verification rules, and honest numbers.

import specdec as sd
verifier, draft = sd.load("zoo:verifier"), sd.load("zoo:draft")
proposer = sd.DraftModel(draft, sd.Chain(gamma=4))
traces = sd.generate(verifier, proposer, ["import os"], sampling=sd.Sampling(0.7))
print(traces[0].output_text, sd.summarize(sd.Tally.of(traces))["block_efficiency"])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from specdec.version import VERSION

if TYPE_CHECKING:
    from specdec.core.errors import UserError as UserError
    from specdec.core.sampling import Sampling as Sampling
    from specdec.core.trace import Trace as Trace
    from specdec.decoding.decoder import SpeculativeDecoder as SpeculativeDecoder
    from specdec.decoding.request import Request as Request
    from specdec.decoding.stopping import Stopping as Stopping
    from specdec.lab.interleaving import Comparison as Comparison
    from specdec.lab.notebook import compare as compare
    from specdec.lab.notebook import generate as generate
    from specdec.lm.hf import HFCausalLM as HFCausalLM
    from specdec.lm.load import load as load
    from specdec.metrics import Tally as Tally
    from specdec.metrics import summarize as summarize
    from specdec.prompts import load_prompts as load_prompts
    from specdec.proof.lossless import prove_lossless as prove_lossless
    from specdec.proposer.chained import Chained as Chained
    from specdec.proposer.draft_model import DraftModel as DraftModel
    from specdec.proposer.medusa import Medusa as Medusa
    from specdec.proposer.ngram import NGram as NGram
    from specdec.proposer.none import NoProposer as NoProposer
    from specdec.proposer.recorded import Recorded as Recorded
    from specdec.tree.calibrated import Calibrated as Calibrated
    from specdec.tree.chain import Chain as Chain
    from specdec.tree.dynamic import Dynamic as Dynamic
    from specdec.tree.filtered import Filtered as Filtered
    from specdec.tree.sampled import Sampled as Sampled
    from specdec.tree.sequoia import Sequoia as Sequoia
    from specdec.tree.sparse import Sparse as Sparse
    from specdec.verification.block import Block as Block
    from specdec.verification.kseq import KSeq as KSeq
    from specdec.verification.lenient import Lenient as Lenient
    from specdec.verification.match import Match as Match
    from specdec.verification.rejection import Rejection as Rejection
    from specdec.verification.top_k import TopK as TopK
    from specdec.verification.top_plus_one import TopPlusOne as TopPlusOne
    from specdec.verification.traversal import Traversal as Traversal
    from specdec.verification.typical import Typical as Typical

__version__ = VERSION

# Imported when first used: torch takes seconds, and `--help` should not wait for it.
_HOMES = {
    "UserError": "specdec.core.errors",
    "Sampling": "specdec.core.sampling",
    "Trace": "specdec.core.trace",
    "SpeculativeDecoder": "specdec.decoding.decoder",
    "Request": "specdec.decoding.request",
    "Stopping": "specdec.decoding.stopping",
    "Comparison": "specdec.lab.interleaving",
    "compare": "specdec.lab.notebook",
    "generate": "specdec.lab.notebook",
    "HFCausalLM": "specdec.lm.hf",
    "load": "specdec.lm.load",
    "Tally": "specdec.metrics",
    "summarize": "specdec.metrics",
    "load_prompts": "specdec.prompts",
    "prove_lossless": "specdec.proof.lossless",
    "Chained": "specdec.proposer.chained",
    "DraftModel": "specdec.proposer.draft_model",
    "Medusa": "specdec.proposer.medusa",
    "NGram": "specdec.proposer.ngram",
    "NoProposer": "specdec.proposer.none",
    "Recorded": "specdec.proposer.recorded",
    "Calibrated": "specdec.tree.calibrated",
    "Chain": "specdec.tree.chain",
    "Dynamic": "specdec.tree.dynamic",
    "Filtered": "specdec.tree.filtered",
    "Sampled": "specdec.tree.sampled",
    "Sequoia": "specdec.tree.sequoia",
    "Sparse": "specdec.tree.sparse",
    "Block": "specdec.verification.block",
    "KSeq": "specdec.verification.kseq",
    "Lenient": "specdec.verification.lenient",
    "Match": "specdec.verification.match",
    "Rejection": "specdec.verification.rejection",
    "TopK": "specdec.verification.top_k",
    "TopPlusOne": "specdec.verification.top_plus_one",
    "Traversal": "specdec.verification.traversal",
    "Typical": "specdec.verification.typical",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'specdec' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])

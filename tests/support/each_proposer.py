"""One proposer of each kind on tiny models, some of which grow trees."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import specdec as sd
from specdec.core.protocols import Proposer
from specdec.lm.hf import HFCausalLM
from specdec.tree.sparse import Sparse
from tests.proposer import test_block_draft, test_chained, test_medusa

PATHS = [[0], [1], [0, 0], [1, 0], [0, 0, 0]]


@lru_cache(maxsize=2)  # which are not the same twice
def chained_heads(model: Any) -> Any:
    return test_chained.random_heads(model, "token prefix")


def runtime_of(verifier: HFCausalLM) -> str:
    """Choose how heads are run: compiled with the verifier, and eagerly where it is captured."""
    return "compiled" if verifier.runtime == "compiled" else "eager"


Make = Callable[[HFCausalLM, HFCausalLM], Proposer]
PROPOSERS: Mapping[str, Make] = {
    "none": lambda verifier, draft: sd.NoProposer(),
    "ngram": lambda verifier, draft: sd.NGram(3),
    "draft_model": lambda verifier, draft: sd.DraftModel(draft, sd.Chain(3)),
    "cascade": lambda verifier, draft: sd.Cascade(
        draft, sd.NGram(3, max_ngram=2), sd.Rejection(), sd.Chain(3)
    ),
    "draft_tree": lambda verifier, draft: sd.DraftModel(draft, Sparse(PATHS)),
    "medusa": lambda verifier, draft: sd.Medusa(
        test_medusa.random_heads(verifier.model),
        verifier,
        Sparse(PATHS),
        None,
        runtime_of(verifier),
    ),
    "corrected": lambda verifier, draft: sd.Medusa(
        test_medusa.random_heads(verifier.model, correction="markov", rank=4),
        verifier,
        sd.BestFirst(5, 3),
        None,
        runtime_of(verifier),
    ),
    "block": lambda verifier, draft: sd.BlockDraft(
        test_block_draft.random_head(verifier.model, "default", reads=["final"]),
        verifier,
        sd.Chain(3),
        None,
        runtime_of(verifier),
    ),
    "chained": lambda verifier, draft: sd.Chained(
        chained_heads(verifier.model), verifier, sd.Chain(3), None, runtime_of(verifier)
    ),
}

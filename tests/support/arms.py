"""Every proposer over the same toy verifier; a new one is one line in PROPOSERS."""

import atexit
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from specdec.core.protocols import CausalLM, Proposer, VerificationRule
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.proposer.cascade import Cascade
from specdec.proposer.datastore import Datastore, write_datastore
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.hybrid import Hybrid
from specdec.proposer.ngram import NGram
from specdec.proposer.none import NoProposer
from specdec.proposer.pool import Pool
from specdec.proposer.recorded import Recorded
from specdec.proposer.retrieval import Retrieval
from specdec.proposer.suffix import Suffix
from specdec.tree.chain import Chain
from specdec.verification.rejection import Rejection
from tests.support.toy import (
    Conditional,
    RankedTree,
    Tokens,
    full_context,
    markov,
    mixture,
    table_lm,
)

V = 3
GAMMA = 2
PROMPT: Tokens = (0, 1, 2, 0, 1)  # its last bigram has occurred before, so that n-grams find it
NUM_REQUESTS = 4096  # the most that a test decodes at once
TREE = (-1, 0, 0, 1, 1, 2)  # depth 2, siblings at both levels

TARGET = markov(2, full_context(5, 1.5, V))
DRAFT = markov(1, mixture(TARGET, full_context(6, 1.5, V), 0.5))


TINY = markov(1, mixture(DRAFT, full_context(7, 1.5, V), 0.5))  # drafts for the draft


@cache
def _texts() -> dict[str, Sequence[int]]:
    """Texts that owe nothing to the verifier or to its noise."""
    rng = random.Random(0)
    return {str(number): rng.choices(range(V), k=64) for number in range(NUM_REQUESTS)}


@cache
def corpus() -> Datastore:
    """Texts that owe nothing to the verifier, to be looked up."""
    folder = Path(mkdtemp(prefix="specdec-corpus-"))
    atexit.register(rmtree, folder)
    rng = random.Random(1)
    write_datastore([rng.choices(range(V), k=40) for _ in range(5)], folder, "toy", shard=50)
    return Datastore.open(str(folder), "path")


PROPOSERS: dict[str, Callable[[], Proposer]] = {
    "none": NoProposer,
    "draft_model": lambda: DraftModel(table_lm(DRAFT, V), Chain(GAMMA)),
    "draft_model_greedy": lambda: DraftModel(table_lm(DRAFT, V), Chain(GAMMA), temperature=0.0),
    "draft_model_short": lambda: DraftModel(table_lm(DRAFT, V, max_length=11), Chain(GAMMA)),
    "ngram": lambda: NGram(GAMMA),
    "suffix": lambda: Suffix(GAMMA),
    "suffix_tree": lambda: Suffix(GAMMA, num_nodes=4),
    "retrieval": lambda: Retrieval(corpus(), GAMMA, min_matched=1, num_nodes=4),
    "pool": lambda: Pool(GAMMA),
    "hybrid": lambda: Hybrid([NGram(GAMMA), DraftModel(table_lm(DRAFT, V), Chain(GAMMA))]),
    "merged": lambda: Hybrid([Suffix(GAMMA), RankedTree(TREE, DRAFT)], mode="merge"),
    "cascade": lambda: Cascade(
        table_lm(DRAFT, V), DraftModel(table_lm(TINY, V), Chain(GAMMA)), Rejection(), Chain(GAMMA)
    ),
    "cascade_ngram": lambda: Cascade(
        table_lm(DRAFT, V), NGram(GAMMA, max_ngram=2), Rejection(), Chain(GAMMA + 1)
    ),
    "recorded": lambda: Recorded(_texts(), GAMMA, accuracy=0.5),
    "ranked_tree": lambda: RankedTree(TREE, DRAFT),
}


def requests(num: int, prompt: Sequence[int] = PROMPT) -> list[Request]:
    """The same prompt under many names: the names alone make the texts differ."""
    assert num <= NUM_REQUESTS
    return [Request(str(number), prompt) for number in range(num)]


def decoder(
    proposer: Proposer,
    distribution: Conditional = TARGET,
    verifier: CausalLM | None = None,
    rule: VerificationRule | None = None,
    sampling: Sampling | None = None,
    stopping: Stopping | None = None,
    batch: int = 1,
    seed: int = 0,
    allow_lossy: bool = False,
) -> SpeculativeDecoder:
    """Put the product's loop around the toy verifier."""
    model = verifier or table_lm(distribution, V)
    parts = (model, proposer, rule or Rejection(), sampling, stopping)
    return SpeculativeDecoder(*parts, batch, seed, allow_lossy)

"""Is a proposer what its protocol asks for? Tried by decoding with it, batched and one by one."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.members import require_members
from specdec.core.protocols import CausalLM, Proposer
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.core.values import Context, Draws, Layer, Proposal, Verdict
from specdec.decoding.claims import Claims
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.proposer.none import NoProposer
from specdec.testing.table_lm import random_table
from specdec.verification.match import Match

LENGTHS = (1, 4, 2, 7, 3)  # tokens of the prompts
BATCH = 3  # fewer than there are requests, so that rows are used again
ROUNDING = 1e-4  # of draft probabilities in other batches
Where = tuple[str, int]  # a request, and how many tokens it has


def check_proposer(
    make: Callable[[], Proposer], verifier: CausalLM | None = None, max_new_tokens: int = 24
) -> None:
    """Decode a few requests, at temperatures 0 and 1, and look at every proposal.

    A proposal must be what the proposer declares (its draw, its depth, distributions that its
    tokens were drawn from); it must depend on its request alone, whatever else is in the batch,
    whichever row it has and whatever was decoded before; and at temperature 0 the text must be the
    verifier's own. It does not show that a proposer is any good.

    Args:
        make: returns a new proposer, of what the verifier can carry.
        verifier: what is decoded with; None: a table of 13 tokens, which has no hidden states.
        max_new_tokens: of each of five requests.

    Raises:
        UserError: the proposer breaks its protocol, and how.
    """
    verifier = verifier or random_table()
    require_members(make(), "proposer")
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature, from_checkpoint=False)
        watched = _Watched(make())
        tried = requests(verifier.vocab_size)
        settings = (verifier, sampling, max_new_tokens)
        texts = _decoded(watched, tried, *settings, batch=BATCH)
        alone = dict(watched.seen)
        for batch, order in ((1, tried), (BATCH, tried[::-1])):
            watched.seen = {}
            again = _decoded(watched, order, *settings, batch=batch)
            _require_same(watched, texts, again, alone, batch)
        if temperature == 0:
            _require_own_text(watched, texts, _decoded(NoProposer(), tried, *settings, batch=1))


def requests(vocab_size: int) -> list[Request]:
    """Return requests of several lengths, some of whose tokens come again."""
    noise = torch.Generator().manual_seed(3)
    ids = [torch.randint(min(vocab_size, 5), (n,), generator=noise).tolist() for n in LENGTHS]
    return [Request(f"request {number}", each) for number, each in enumerate(ids)]


class _Watched:
    """A proposer whose proposals are looked at and remembered."""

    def __init__(self, proposer: Proposer):
        self._of = proposer
        self.name = f"{type(proposer).__module__}.{type(proposer).__qualname__}"
        self._claims = Claims(proposer)
        self.seen: dict[Where, Proposal] = {}
        model = getattr(proposer, "model", None)
        if model is not None:  # whose vocabulary the decoder compares with the verifier's
            self.model = model

    @property
    def draw(self) -> Draws:
        return self._of.draw

    @property
    def max_depth(self) -> int:
        return self._of.max_depth

    @property
    def layers(self) -> Sequence[Layer]:
        return self._of.layers

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None:
        self._of.open(num_rows, capacity, vocab_size)

    def reset(self, contexts: Sequence[Context]) -> None:
        self._of.reset(contexts)

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        proposals = self._of.propose(contexts)
        self._claims.check(contexts, proposals)
        for context, proposal in zip(contexts, proposals, strict=True):
            depth = max(proposal.tree.depths, default=0)
            if depth > self.max_depth:
                raise self.wrong(f"a tree of depth {depth}, and max_depth={self.max_depth}")
            where = context.request_id, len(context.token_ids)
            self.seen[where] = proposal.pruned(
                context.max_depth, frozenset()
            )  # as the decoder does
        return proposals

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None:
        self._of.update(contexts, verdicts)

    def wrong(self, what: str) -> UserError:
        return UserError(f"{self.name}: {what}")


def _decoded(
    proposer: Proposer,
    tried: Sequence[Request],
    verifier: CausalLM,
    sampling: Sampling,
    max_new_tokens: int,
    batch: int,
) -> dict[str, Trace]:
    stopping = Stopping(max_new_tokens)
    decoder = SpeculativeDecoder(verifier, proposer, Match(), sampling, stopping, batch=batch)
    return {trace.prompt_id: trace for trace in decoder.decode(tried)}


def _require_same(
    watched: _Watched,
    texts: Mapping[str, Trace],
    again: Mapping[str, Trace],
    alone: Mapping[Where, Proposal],
    batch: int,
) -> None:
    """Compare two decodings of the same requests with the same proposer."""
    ways = f"in batches of {BATCH} and of {batch}, in another order"
    for where in sorted(alone.keys() | watched.seen.keys()):
        first, second = alone.get(where), watched.seen.get(where)
        if first is None or second is None or not _are_same(first, second):
            name, length = where
            raise watched.wrong(
                f"{name} has other proposals after {length} tokens {ways}; expected state that is"
                " kept per row, emptied by reset, and randomness of context.draft_stream alone"
            )
    differing = [name for name in texts if texts[name].output_ids != again[name].output_ids]
    if differing:
        raise watched.wrong(f"{differing[0]} has another text {ways}")


def _are_same(first: Proposal, second: Proposal) -> bool:
    """Compare trees, and the distributions that their tokens were drawn from."""
    return first.tree == second.tree and _are_close(_drawn_from(first), _drawn_from(second))


def _drawn_from(proposal: Proposal) -> Tensor | None:
    """Return the rows of the nodes with children; a larger batch may have made more."""
    inner = [node for node, children in enumerate(proposal.tree.children) if children]
    return None if proposal.draft_probs is None else proposal.draft_probs[inner]


def _are_close(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.shape == second.shape and torch.allclose(first, second, atol=ROUNDING)


def _require_own_text(
    watched: _Watched, texts: Mapping[str, Trace], expected: Mapping[str, Trace]
) -> None:
    """At temperature 0 a text is the verifier's, whatever is proposed."""
    for name, trace in texts.items():
        if trace.output_ids != expected[name].output_ids:
            raise watched.wrong(f"{name} has not the verifier's own text at temperature 0")

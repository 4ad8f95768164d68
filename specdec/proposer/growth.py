"""Grow candidate trees level by level: what every proposer with a draft distribution shares."""

from collections.abc import Callable, Generator, Sequence

from torch import Tensor

from specdec.core.on_device import on_device
from specdec.core.protocols import TemperedTree, TreePolicy
from specdec.core.sampling import Sampling
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Draw, Level, Proposal
from specdec.proposer.levels import Frontier, Levels
from specdec.proposer.paths import Paths

# Yields the logits [B, F, V] after the F nodes of a frontier, or [B, 1, V] that are those of all;
# first after the root alone, and is sent the next frontier.
LogitSource = Generator[Tensor, Frontier, None]


def propose_where(
    ready: Callable[[Context], bool],
    contexts: Sequence[Context],
    grown: Callable[[Sequence[Context]], list[Proposal]],
) -> list[Proposal]:
    """Grow trees for the requests that are ready and have tokens left; the others get none."""
    able = [context for context in contexts if context.max_depth > 0 and ready(context)]
    trees = zip(able, grown(able) if able else [], strict=True)
    proposals = {context.row: proposal for context, proposal in trees}
    return [
        proposals.get(c.row)
        or Proposal(CandidateTree.chain(c.token_ids[-1], ()), num_draft_calls=0)
        for c in contexts
    ]


def grow(
    policy: TreePolicy,
    contexts: Sequence[Context],
    source: LogitSource,
    temperature: float | None = None,
) -> list[Proposal]:
    """Grow one tree per request, each at most as deep as it can use.

    Sampled candidates are drawn from the distribution that the text is sampled with (same
    processors, top-k, top-p, min-p) at `temperature`, by default the text's. Deterministic ones are
    chosen by the draft's probabilities, processed alike, at `temperature`: by default 1, or the
    text's for a `TemperedTree`, and never 0, where all but one would be zero.
    """
    depth = min(policy.max_depth, max(context.max_depth for context in contexts))
    streams = [context.draft_stream for context in contexts]
    sampled = policy.draw is not Draw.DETERMINISTIC
    sampling = _sampling(policy, contexts[0].sampling, temperature)
    logits = next(source)
    paths = Paths(contexts, logits.device)
    levels = Levels([one.max_depth for one in contexts])
    wanted = [max(policy.min_confidence, one.min_confidence) for one in contexts]
    may_stop = policy.may_stop or any(wanted)
    level: Level | None = None
    width = 1  # F
    for number in range(1, depth + 1):
        draft_probs = sampling.warp(paths.processed(logits))  # [B, F, V], or [B, 1, V]
        confident = None
        if any(wanted):
            least = on_device([[each] for each in wanted], logits.device)
            confident = _confidence(logits) >= least  # [B, F], or [B, 1]
            # Nothing there is worth a place.
            draft_probs = draft_probs.masked_fill(~confident[..., None], 0.0)
            confident = confident.expand(-1, width)
        draft_probs = draft_probs.expand(-1, width, -1)
        level = policy.expand(level, number, draft_probs, streams)
        levels.add(level, draft_probs if sampled else None, confident)
        if number == depth or (may_stop and not levels.goes_on()):
            break
        frontier = levels.frontier
        width = frontier.token_ids.shape[1]
        paths.go_on(frontier.token_ids, frontier.parents)
        logits = source.send(frontier)
    return levels.proposals(policy, contexts)


def _sampling(policy: TreePolicy, of_text: Sampling, temperature: float | None) -> Sampling:
    """Return what makes q of the draft's logits."""
    if policy.draw is not Draw.DETERMINISTIC:
        return of_text.at(temperature)
    is_tempered = isinstance(policy, TemperedTree) and policy.is_tempered
    default = of_text.temperature if is_tempered else 1.0
    return Sampling(temperature or default or 1.0)


def _confidence(logits: Tensor) -> Tensor:  # [B, F, V] -> [B, F]
    """Return the largest probability of the draft's distribution at temperature 1."""
    return logits.float().softmax(dim=-1).amax(dim=-1)

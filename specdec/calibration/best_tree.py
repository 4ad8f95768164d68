"""The best tree of fixed ranks for decoding, which begins its steps behind hard tokens.

Over all positions of a text the most frequent rank paths are the best tree (`PathCounts`). But
decoding looks only where its steps begin, and where they begin depends on the tree. So each
position is weighted with the probability r(s) that a step begins there, the tree that is the best
under these weights has step starts of its own, and so on; replay says which of them is the best.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, pairwise

import torch
from torch import Tensor

from specdec.calibration.path_counts import PathCounts
from specdec.core.ordering import BEHIND_ALL, ranks_of
from specdec.core.sampling import Sampling
from specdec.recording.texts import Text, batches, output_ids, processed
from specdec.replaying.closed_form import CELLS_AT_ONCE
from specdec.replaying.draft_distributions import DraftDistributions
from specdec.replaying.expected_steps import Replayed, depth_limits
from specdec.replaying.survival import ahead, of_tree
from specdec.tree.fixed import Path

MAX_ROUNDS = 20


@dataclass(frozen=True)
class Ranked:
    """Texts, and the rank of each token that a step from each place would look at."""

    texts: Sequence[Text]
    ranks: Tensor  # [B, T, D] int64, on the CPU; BEHIND_ALL where there is no token

    def starts(self, nodes: Sequence[Path]) -> Tensor:  # [B, T] float64
        """Return where steps begin that propose a tree of these paths."""
        depth = max(map(len, nodes))
        width = 1 + max(max(path) for path in nodes)
        numbers = torch.arange(width)
        shares = [(self.ranks[..., d, None] == numbers).double() for d in range(depth)]
        return Replayed.of(self.texts, of_tree(nodes, shares)).starts


@torch.inference_mode()
def ranked(
    texts: Sequence[Text],
    distributions: DraftDistributions,
    depth: int,
    vocab_size: int,
    sampling: Sampling,
) -> list[Ranked]:
    """Rank the tokens of texts in the distributions that candidates would be taken from.

    Of `sampling`, as `heeded` returns it, the processors count: decoding ranks behind them.
    """
    found: list[Ranked] = []
    for batch in batches(texts, max(1, CELLS_AT_ONCE // vocab_size)):
        tokens = output_ids(batch, torch.device("cpu"))
        columns: list[Tensor] = []
        for number, logits in enumerate(distributions.along(batch, vocab_size), start=1):
            here = ahead(tokens, number).to(logits.device).flatten()
            logits = processed(batch, sampling, logits, number)
            ranks = ranks_of(logits.float().flatten(0, 1), here).cpu()
            columns.append(ranks.view(tokens.shape))
            if number == depth:
                break
        if distributions.num_depths is None:  # the same at whatever depth
            columns = [ahead(columns[0], d) for d in range(1, depth + 1)]
        found.append(Ranked(batch, _within(torch.stack(columns, dim=-1), batch, distributions)))
    return found


def _within(
    ranks: Tensor, texts: Sequence[Text], distributions: DraftDistributions
) -> Tensor:  # [B, T, D]
    """Let no path hold deeper than candidates go, nor before there are any."""
    limits = depth_limits(texts, ranks.shape[2], ranks.device)
    ranks[torch.arange(ranks.shape[2]) >= limits[..., None]] = BEHIND_ALL
    for row, text in enumerate(texts):
        ranks[row, : distributions.first_start(text)] = BEHIND_ALL
    return ranks


@dataclass(frozen=True)
class BestTree:
    """A tree of rank paths, and what replay makes of it."""

    nodes: list[Path]  # the most frequent first, so that beginnings stand before their paths
    counts: PathCounts  # where the tree's own steps begin
    block_efficiency: float
    rounds: int  # until it was found


def best_tree(parts: Sequence[Ranked], num_nodes: int, max_rank: int) -> BestTree:
    """Return the best of the trees that a search comes by: at least that of uniform weights.

    Each round takes the most frequent paths under the mean of the step starts of all trees so far:
    under those of the last one alone, two trees may take turns, each good where the other one fails
    (fictitious play, Brown 1951). What counts in the end is what replay makes of each.
    """
    ranks = torch.cat([part.ranks.flatten(0, 1) for part in parts]).clamp(max=max_rank + 1)
    total = torch.zeros(len(ranks), dtype=torch.float64)
    weights = torch.cat([_inside(part).flatten() for part in parts])
    num_tokens = float(weights.sum())
    best: BestTree | None = None
    starts: dict[frozenset[Path], Tensor] = {}  # of each tree so far
    for number in range(1, MAX_ROUNDS + 1):
        nodes = PathCounts(ranks, max_rank, weights).most_frequent(num_nodes)
        if not nodes:  # no token has so low a rank: nothing is ever accepted
            return BestTree([], PathCounts(ranks, max_rank, weights), 1.0, number)
        key = frozenset(nodes)
        if key not in starts:
            starts[key] = torch.cat([part.starts(nodes).flatten() for part in parts])
            reached = num_tokens / float(starts[key].sum())
            if best is None or reached > best.block_efficiency:
                counts = PathCounts(ranks, max_rank, starts[key])
                ordered = sorted(nodes, key=lambda path: (-counts.count(path), len(path), path))
                best = BestTree(ordered, counts, reached, number)
        total += starts[key] / starts[key].sum()
        weights = total
    assert best is not None
    return best


def _inside(part: Ranked) -> Tensor:  # [B, T] float64
    """Weigh all positions of the texts alike, to begin with."""
    lengths = torch.tensor([[len(text.output_ids)] for text in part.texts])
    return (torch.arange(part.ranks.shape[1]) < lengths).double()


@dataclass(frozen=True)
class Budget:
    """A tree of so many nodes, what it brings and what it costs."""

    num_nodes: int
    block_efficiency: float
    seconds: float  # of a step
    gain: float  # tokens per step that the last node brings
    price: float  # tokens that its seconds would bring otherwise, at the best throughput of all

    @property
    def throughput(self) -> float:
        """Tokens per second."""
        return self.block_efficiency / self.seconds


def budgets(
    parts: Sequence[Ranked],
    nodes: Sequence[Path],
    seconds_of: Callable[[Sequence[Path]], float],
) -> list[Budget]:
    """Say of every beginning of `nodes`, from none to all, what it brings and what it costs.

    A step's value is its tokens less its seconds times a price; with the throughput that is reached
    at best for the price, the tree of the largest value is the one of that throughput (Dinkelbach
    1967). So a further node pays as long as its gain is above its price; the gain per step alone,
    which is never negative, would say to go on for ever.
    """
    num_tokens = sum(len(text.output_ids) for part in parts for text in part.texts)
    reached = [1.0]
    for number in range(1, len(nodes) + 1):
        steps = sum(float(part.starts(nodes[:number]).sum()) for part in parts)
        reached.append(num_tokens / steps)
    seconds = [seconds_of(nodes[:number]) for number in range(len(nodes) + 1)]
    best = max(tau / cost for tau, cost in zip(reached, seconds, strict=True))
    gains = [0.0, *(after - before for before, after in pairwise(reached))]
    prices = [0.0, *(best * (after - before) for before, after in pairwise(seconds))]
    return [Budget(*row) for row in zip(count(), reached, seconds, gains, prices, strict=False)]

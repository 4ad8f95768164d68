"""Trees of sampled candidates: k draws from q after each node."""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from specdec.core.errors import UserError, require
from specdec.core.narrowing import are_integers
from specdec.core.on_device import on_device
from specdec.core.randomness import RandomStream
from specdec.core.sampling import draw
from specdec.core.values import Draw
from specdec.tree.fixed import Candidates, FixedTree, Path

DRAWS = (Draw.IID, Draw.WITHOUT_REPLACEMENT, Draw.TOP_PLUS_ONE)


class SampledTree(FixedTree):
    """A fixed tree whose candidates are drawn from q."""

    def __init__(self, nodes: Sequence[Path], draw: Draw, min_confidence: float = 0.0):
        super().__init__(nodes, min_confidence)
        self.draw = draw if any(path[-1] > 0 for path in nodes) else Draw.SINGLE

    @property
    def is_drawn_chain(self) -> bool:
        """Whether there is one draw after another; a subclass may do something else with them."""
        own = type(self).candidates is SampledTree.candidates
        own = own and type(self).expand is FixedTree.expand
        return own and self.draw is Draw.SINGLE and not self.may_stop

    def candidates(
        self, draft_probs: Tensor, width: int, streams: Sequence[RandomStream]
    ) -> Candidates:
        """Draw `width` children of each node; where a node gets fewer, its later ones are unused.

        Which are unused does not depend on any token, so the others have the distribution they
        should have.
        """
        if self.draw is Draw.WITHOUT_REPLACEMENT:
            return without_replacement(draft_probs, width, streams)
        if self.draw is Draw.TOP_PLUS_ONE:
            return _top_plus_one(draft_probs, width, streams)
        return Candidates(_drawn(draft_probs, width, streams))


class Sampled(SampledTree):
    """`widths[d]` draws after each node at depth d.

    `draw` is `iid` (Miao et al. 2024, SpecInfer), `without_replacement` (Chen et al. 2024, Sequoia;
    Jeon et al. 2024) or `top_plus_one`: all but the last child are the likeliest tokens, the last
    is drawn from the others (Hu et al. 2025). With widths of 1 all of them are a sampled chain.

    Args:
        widths: draws after each node, a number for each depth.
        draw: `iid`, `without_replacement` or `top_plus_one`.
        min_confidence: drafting ends before a token that the draft gives less probability.

    Raises:
        UserError: widths that are no positive integers, or an unknown `draw`.
    """

    def __init__(self, widths: Sequence[int], draw: str, min_confidence: float = 0.0):
        if not are_integers(widths, 1):
            raise UserError(f"widths={widths!r}: expected a list of integers >= 1, [2, 2, 1]")
        names = [each.value for each in DRAWS]
        require(draw in names, "draw", draw, "one of " + ", ".join(names))
        levels = [range(width) for width in widths]
        depths = range(1, len(levels) + 1)
        nodes = [path for depth in depths for path in product(*levels[:depth])]
        super().__init__(nodes, Draw(draw), min_confidence)


def _drawn(weights: Tensor, num: int, streams: Sequence[RandomStream]) -> Tensor:
    """Draw `num` tokens from each of F distributions: [B, F, V] -> [B, F, num]."""
    num_rows, num_nodes = weights.shape[:2]
    uniforms = [stream.uniform() for stream in streams for _ in range(num_nodes * num)]
    if len(uniforms) == 1:  # without a tensor: a chain of one request is the most usual tree
        numbers = uniforms[0]
    else:
        numbers = on_device(uniforms, weights.device, torch.float64)
        numbers = numbers.view(num_rows, num_nodes, num)
    # Where the draft's numbers are NaN, nothing is below the target; the verifier decides.
    return draw(weights, numbers).clamp_(max=weights.shape[-1] - 1)


def without_replacement(weights: Tensor, num: int, streams: Sequence[RandomStream]) -> Candidates:
    """Draw `num` tokens after each of F nodes, each from the distribution without those before it.

    Takes the distributions [B, F, V]; where a distribution has fewer tokens, the later ones are not
    there.
    """
    token_ids, there = list[Tensor](), list[Tensor]()
    for _ in range(num):
        there.append(weights.amax(dim=-1, keepdim=True) > 0)
        token_ids.append(_drawn(weights, 1, streams))
        weights = weights.scatter(-1, token_ids[-1], 0.0)
    return Candidates(torch.cat(token_ids, dim=-1), torch.cat(there, dim=-1))


def _top_plus_one(weights: Tensor, num: int, streams: Sequence[RandomStream]) -> Candidates:
    """Take the num - 1 likeliest tokens, and draw one from the others, as far as there are any."""
    top = weights.topk(min(num - 1, weights.shape[-1]), dim=-1).indices
    others = weights.scatter(-1, top, 0.0)
    last = _drawn(others, 1, streams)
    missing = [weights.gather(-1, top) <= 0, others.amax(dim=-1, keepdim=True) <= 0]
    there = ~torch.cat(missing, dim=-1)
    # No more candidates than there are tokens: the others are not there either.
    beyond = (0, max(0, num - there.shape[-1]))
    token_ids = torch.nn.functional.pad(torch.cat([top, last], dim=-1), beyond)
    return Candidates(token_ids, torch.nn.functional.pad(there, beyond))

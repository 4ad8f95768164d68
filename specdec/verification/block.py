"""Block verification: the longest part of a chain that is as likely as p says, taken jointly."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm, Passes, TextNodes
from specdec.core.on_device import on_device
from specdec.core.on_host import together
from specdec.core.randomness import Stream
from specdec.core.shown import Shown, rows_of
from specdec.core.tree import CandidateTree
from specdec.core.values import Draw, Verdict
from specdec.verification import single_draw
from specdec.verification.batched import Batched
from specdec.verification.candidate_nodes import CandidateNodes
from specdec.verification.last_token import LastToken
from specdec.verification.odds import ratio, residual
from specdec.verification.overlap import overlaps
from specdec.verification.verdicts import Decided, last_of, verdicts


class Block(Batched):
    """Accept the longest beginning of a chain for which a test holds (Sun et al. 2025, Alg. 2).

    With c_i = min(1, c_{i-1} p(x_i)/q(x_i)) and S_i = sum_v (c_i p - q)+ after x_1 .. x_i, the test
    of i holds with probability S_i / (S_i + 1 - c_i), that of the whole chain with c_gamma. All of
    them are independent, and a test that fails does not end the chain: the LAST one that holds
    counts. What follows is drawn from norm((c_i p - q)+). No rule for chains accepts more, on any
    text. Tests look ahead, so noise must never be used again in a later step.
    """

    lossless_for = frozenset({Draw.SINGLE, Draw.FILTERED})
    defined_for = lossless_for
    needs_q = True
    decided_by_text = frozenset[Draw]()

    def verify_all(self, shown: Shown) -> list[Verdict]:
        """Decide on the chains of a batch."""
        nodes = CandidateNodes.of(shown)
        clipped = _clipped_ratios(_ratios(shown, nodes))
        # Nodes with a candidate, shown or withheld: all but, mostly, the last of each chain.
        ahead = _at(clipped, nodes)[:, None] * nodes.p  # c_i p after x_1 .. x_i
        excess = (ahead - nodes.q).clamp_(min=0).sum(dim=-1)  # S_i

        def rest(places: Sequence[int]) -> Tensor:
            ours, q, p = (rows_of(each, places) for each in (ahead, nodes.q, nodes.p))
            return residual(ours, q, p)

        last = LastToken(shown, nodes, rest)
        columns = torch.stack([excess, overlaps(nodes)], dim=1)
        c, table, *drawn = together(clipped, columns, *last.ahead(_asked_before))
        by_request = nodes.by_request(table, len(shown.proposals))
        decided = [
            _decided(proposal.tree.num_draft_tokens, of_chain, rows, stream)
            for proposal, of_chain, rows, stream in zip(
                shown.proposals, c, by_request, shown.streams, strict=True
            )
        ]
        tokens = last.behind([last_of(one.path) for one in decided], drawn)
        return verdicts(shown, decided, tokens, nodes)

    def closed_form(self, draw: Draw) -> ClosedForm | None:
        """Tell replay how sampled candidates are accepted, given the text."""
        return CHAIN_FORM if draw in self.defined_for else None


def _ratios(shown: Shown, nodes: CandidateNodes) -> Tensor:  # [B, gamma]
    """Return p(x_i) / q(x_i) along each chain; 1 behind the end of those that are shorter."""
    lengths = [each.tree.num_draft_tokens for each in shown.proposals]
    ones = nodes.p.new_ones(len(lengths), max(lengths))
    drafted = [
        (place, owner * max(lengths) + number)
        for (owner, number), place in nodes.places.items()
        if number < lengths[owner]  # there is no token where it was withheld
    ]
    if not drafted:
        return ones
    places, where = zip(*drafted, strict=True)
    found = nodes.at(places)
    ratios = found.p.gather(1, found.token_ids) / found.q.gather(1, found.token_ids)
    there = on_device(where, ones.device)
    return ones.flatten().index_copy(0, there, ratios.flatten()).view_as(ones)


def _at(values: Tensor, nodes: CandidateNodes) -> Tensor:  # [B, gamma + 1] -> [I]
    width = values.shape[1]
    return rows_of(values.flatten(), [owner * width + node for owner, node in nodes.places])


def _clipped_ratios(ratios: Tensor) -> Tensor:  # [B, gamma] -> [B, gamma + 1]
    """Return c_0 .. c_gamma."""
    clipped = [ratios.new_ones(len(ratios))]
    for of_token in ratios.unbind(dim=1):
        clipped.append((clipped[-1] * of_token).clamp(max=1))
    return torch.stack(clipped, dim=1)


def _asked_before(tree: CandidateTree) -> list[int]:  # [N+1]
    """The last test is asked first; the one that holds ends the questions."""
    num_drafted = tree.num_draft_tokens
    return [num_drafted, *range(num_drafted, 0, -1)]


def _decided(
    num_drafted: int, c: Sequence[float], rows: Mapping[int, Sequence[float]], stream: Stream
) -> Decided:
    s = [row[0] for row in rows.values()]
    accepted = num_drafted
    while accepted > 0 and not stream.accept(_holds(c, s, accepted, len(rows))):
        accepted -= 1
    # E[sum_k c_k], with the draw of the k-th token averaged out: sum_v min(c_{k-1} p, q).
    expected = sum(c[node] - row[0] for node, row in rows.items())
    overlap = {node: row[1] for node, row in rows.items()}
    return Decided(range(1, accepted + 1), expected, overlap)


def _holds(c: Sequence[float], s: Sequence[float], i: int, num_nodes: int) -> float:
    """Return the probability that the test of x_1 .. x_i holds."""
    if i >= num_nodes:  # nothing was drawn after it
        return c[i]
    total = s[i] + 1 - c[i]
    return s[i] / total if total > 0 else 1.0


def _shares(nodes: TextNodes) -> Tensor:  # [n, 1]
    """Return P(A >= d | text, A >= d - 1).

    P(A >= k | text) is the least of the products of the first j <= k ratios q/p, and of 1.
    """
    return shares_along(nodes.log_ratios, torch.zeros_like(nodes.log_p))[:, None]


def shares_along(log_ratios: Sequence[Tensor], most: Tensor) -> Tensor:  # of [n], [n] -> [n]
    """Return the last one's factor in the least of sums of logarithms, of which none is `most`."""
    total, above, least = torch.zeros_like(most), most, most
    for log_ratio in log_ratios:
        total = total + log_ratio
        above, least = least, least.minimum(total)
    return (least - above).exp().where(above > -torch.inf, 0.0)


def clipped_along(log_ratios: Sequence[Tensor]) -> Tensor:  # of [n] -> [n]
    """Return c after the text's tokens: c_0 = 1, c_k = min(1, c_{k-1} p/q); at least one ratio."""
    clipped = torch.zeros_like(log_ratios[0])
    for log_ratio in log_ratios:
        clipped = (clipped - log_ratio).clamp(max=0)
    return clipped.exp()


def _passes(nodes: TextNodes) -> Tensor:  # [n]
    """Return P(a drawn token was submitted | x, A >= d - 1).

    If it was not accepted, c is as after the tokens above: of the tests at and behind a drawn y at
    least one holds with probability min(1, c p(y)/q(y)), whatever is drawn behind it.
    """
    *above, _ = nodes.log_ratios
    if not above:
        return single_draw.passes(nodes)
    c = clipped_along(above).to(nodes.q.dtype)
    excess = (nodes.q - c[:, None] * nodes.p).clamp(min=0).double().sum(dim=1)
    withheld = (1 - nodes.q.double().sum(dim=1)).clamp(min=0)
    accepted = _shares(nodes)[:, 0]
    return accepted + (1 - accepted) * ratio(excess, excess + withheld)


CHAIN_FORM = ClosedForm(
    _shares, needs_p=False, reads_path=True, passes=Passes(_passes), ends=single_draw.ENDS
)

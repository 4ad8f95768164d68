"""How much of the verifier's mass the candidates can cover at a node: measured, and at best."""

from torch import Tensor

from specdec.core.ordering import ascending_order
from specdec.verification.candidate_nodes import CandidateNodes


def overlaps(nodes: CandidateNodes) -> Tensor:  # [I]
    """Return sum_v min(p, q) = 1 - TV(p, q) for each node.

    The probability that one draw from q is accepted (Leviathan et al. 2023, theorem 3.5).
    """
    return nodes.p.minimum(nodes.q).sum(dim=-1)


def transport_bound(p: Tensor, q: Tensor, num_draws: int | Tensor) -> Tensor:  # [..., V] -> [...]
    """Return the most that any rule can accept of k i.i.d. draws from q: an optimal transport.

    1 + min over sets H of tokens of p(H) - q(H)^k, where the minimum is taken at a beginning of the
    tokens sorted by p / q (Sun et al. 2023, SpecTr; in this form Hu et al. 2025). k: `num_draws`.
    """
    order = ascending_order((p / q).nan_to_num(nan=float("inf"), posinf=float("inf")))
    below_p = p.gather(-1, order).double().cumsum(dim=-1)
    below_q = q.gather(-1, order).double().cumsum(dim=-1)
    return 1 + (below_p - below_q**num_draws).amin(dim=-1).clamp(max=0)

"""How much of the verifier's mass the draft covers, at the nodes that a step visited."""

from torch import Tensor

from specdec.core.tree import ROOT
from specdec.core.values import Proposal, Verdict


def overlap(proposal: Proposal, target_probs: Tensor, verdict: Verdict) -> list[float]:
    """Return sum_v min(p(v), q(v)) = 1 - TV(p, q) for each visited node that has candidates.

    This is the probability that one draw from q is accepted (Leviathan et al. 2023, theorem 3.5).
    Deterministic candidates cover the mass of the children's tokens.
    """
    tree = proposal.tree
    visited = [node for node in (ROOT, *verdict.path) if tree.children[node]]
    if not visited:
        return []
    if proposal.draft_probs is not None:
        rows = slice(0, len(visited)) if tree.is_chain else visited
        p, q = target_probs[rows], proposal.draft_probs[rows]
        return p.minimum(q).sum(dim=-1).tolist()
    covered: list[float] = []
    for node in visited:
        tokens = sorted({tree.token_ids[child] for child in tree.children[node]})
        covered.append(float(target_probs[node, tokens].sum()))
    return covered

"""How far a rule that is not lossless strays from the verifier, exactly, where it strayed."""

from dataclasses import replace

from torch import Tensor

from specdec.core.tree import ROOT
from specdec.core.values import Verdict
from specdec.verification.candidate_nodes import Asked


def with_divergence(verdict: Verdict, asked: Asked, laws: Tensor) -> Verdict:
    """Add total variation and KL(law || p), in nats, at each visited node.

    Row i of `laws` [I, V] is the law of the token that is emitted after node `asked.nodes[i]`. The
    last node of a fully accepted path emits from p itself.
    """
    strays = divergences(laws, asked.p)
    place = {node: row for row, node in enumerate(asked.nodes)}
    visited = (ROOT, *verdict.path)
    found = tuple(strays[place[node]] if node in place else (0.0, 0.0) for node in visited)
    return replace(verdict, divergence=found)


def divergences(laws: Tensor, p: Tensor) -> list[tuple[float, float]]:  # [n, V], [n, V]
    """Return TV(law, p) and KL(law || p) of each row."""
    variation = 0.5 * (laws - p).abs().sum(dim=-1)
    # A law of no mass where p has none has a KL of 0 there, not 0 * inf.
    terms = (laws * (laws / p).log()).where(laws > 0, 0.0)
    return list(zip(variation.tolist(), terms.sum(dim=-1).tolist(), strict=True))

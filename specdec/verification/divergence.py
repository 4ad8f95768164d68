"""How far a rule that is not lossless strays from the verifier, exactly, where it strayed."""

from dataclasses import replace

from torch import Tensor

from specdec.core.on_host import floats
from specdec.core.tree import ROOT
from specdec.core.values import Verdict
from specdec.verification.candidate_nodes import CandidateNodes


def with_divergence(verdict: Verdict, nodes: CandidateNodes, emitted_probs: Tensor) -> Verdict:
    """Add total variation and KL(emitted || p), in nats, at each visited node.

    Row i of `emitted_probs` [I, V] is what the token after node `nodes.numbers[i]` is drawn
    from. The last node of a fully accepted path emits from p itself.
    """
    strays = divergences(emitted_probs, nodes.p)
    place = {node: row for row, node in enumerate(nodes.numbers)}
    visited = (ROOT, *verdict.path)
    found = tuple(strays[place[node]] if node in place else (0.0, 0.0) for node in visited)
    return replace(verdict, divergence=found)


def divergences(emitted_probs: Tensor, p: Tensor) -> list[tuple[float, float]]:  # [n, V], [n, V]
    """Return TV(emitted, p) and KL(emitted || p) of each row."""
    variation = 0.5 * (emitted_probs - p).abs().sum(dim=-1)
    # A distribution without mass where p has none has a KL of 0 there, not 0 * inf.
    terms = (emitted_probs * (emitted_probs / p).log()).where(emitted_probs > 0, 0.0)
    return list(zip(floats(variation), floats(terms.sum(dim=-1)), strict=True))

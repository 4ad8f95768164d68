"""Kullback-Leibler divergence from the verifier's distribution."""

from torch import Tensor


class KL:
    """KL(p || q) with the verifier's p at temperature 1 (DistillSpec, Zhou et al. 2023).

    Its gradient is that of the cross-entropy with p as a soft label: the same on average as that of
    the text's tokens, if the verifier wrote them, with less noise.
    """

    uses_verifier = True

    def __call__(self, logits: Tensor, target_ids: Tensor, log_p: Tensor | None) -> Tensor:
        """Score each token: [n, V], [n], [n, V] -> [n] nats."""
        assert log_p is not None
        # sum p (log p - log q), with log q = logits - logsumexp: two passes fewer over V.
        return (log_p.exp() * (log_p - logits)).sum(dim=-1) + logits.logsumexp(dim=-1)

"""Kullback-Leibler divergence from the verifier's distribution."""

from torch import Tensor


class KL:
    """KL(p || q) with the verifier's p at temperature 1 (DistillSpec, Zhou et al. 2023).

    Its gradient is that of the cross-entropy with p as a soft label: the same on average as that of
    the text's tokens, if the verifier wrote them, with less noise.
    """

    uses_verifier = True

    def __call__(
        self, logits: Tensor, target_ids: Tensor, verifier_logits: Tensor | None
    ) -> Tensor:  # [n, V], [n], [n, V] -> [n] nats
        """Score each token."""
        assert verifier_logits is not None
        log_p = verifier_logits.log_softmax(dim=-1)
        return (log_p.exp() * (log_p - logits.log_softmax(dim=-1))).sum(dim=-1)

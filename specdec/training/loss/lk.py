"""The logarithm of the overlap with the verifier's distribution, and its blend with KL."""

from torch import Tensor

from specdec.core.errors import require_number
from specdec.training.loss.kl import KL
from specdec.training.loss.total_variation import TotalVariation


class LK:
    """-log alpha, or lambda KL + (1 - lambda) TV with lambda = exp(-eta alpha) (2602.23881).

    alpha = sum_v min(p, q) is the acceptance probability; its gradient is not followed within
    lambda. `eta=null` is -log alpha, whose gradient is that of TV over alpha; the blend leans on
    KL where p and q are far apart and on TV where they are near.
    """

    uses_verifier = True

    def __init__(self, eta: float | None = 3.0):
        if eta is not None:
            require_number("eta", eta, 0.0)
        self._eta = eta

    def __call__(self, logits: Tensor, target_ids: Tensor, log_p: Tensor | None) -> Tensor:
        """Score each token: [n, V], [n], [n, V] -> [n]."""
        distance = TotalVariation()(logits, target_ids, log_p)
        if self._eta is None:
            return -(1 - distance).clamp(min=1e-12).log()
        share = (-self._eta * (1 - distance.detach())).exp()
        return share * KL()(logits, target_ids, log_p) + (1 - share) * distance

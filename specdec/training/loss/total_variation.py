"""Total variation distance to the verifier's distribution: the chance of a rejection."""

from torch import Tensor


class TotalVariation:
    """1 - sum_v min(p, q): one draw from q is rejected so often (Leviathan et al. 2023, th. 3.5).

    Its gradient vanishes where p and q hardly overlap; `loss=lk` mends that.
    """

    uses_verifier = True

    def __call__(self, logits: Tensor, target_ids: Tensor, log_p: Tensor | None) -> Tensor:
        """Score each token: [n, V], [n], [n, V] -> [n] in [0, 1]."""
        assert log_p is not None
        p, q = log_p.exp(), logits.softmax(dim=-1)
        return 1 - p.minimum(q).sum(dim=-1)

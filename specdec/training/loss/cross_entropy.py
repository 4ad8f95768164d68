"""Cross-entropy with the text: the loss of Medusa-1."""

from torch import Tensor, nn


class CrossEntropy:
    """-log q(x) of the token that the text goes on with (Cai et al. 2024, eq. 1)."""

    uses_verifier = False

    def __call__(self, logits: Tensor, target_ids: Tensor, log_p: Tensor | None) -> Tensor:
        """Score each token: [n, V], [n], [n, V] -> [n] nats."""
        return nn.functional.cross_entropy(logits, target_ids, reduction="none")

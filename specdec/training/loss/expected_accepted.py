"""The number of tokens that steps of decoding would accept along the text, negated."""

from collections.abc import Callable

import torch
from torch import Tensor

from specdec.core.errors import require, require_number
from specdec.training.starts import start_probabilities


class ExpectedAccepted:
    """-r sum_{k <= K} prod_{i <= k} w_i, with w_i = min(1, q_i(x) / p(x)) of the text's tokens x.

    The product is P(A >= k | text) of token-level rejection, if the verifier wrote the text at
    `temperature` and the chain is drawn at it; so it is for texts of the verifier only (distill).
    At temperature 0 p is sure of the text and w = q(x), with q at temperature 1 (D-PACE's limit);
    the first depth alone, averaged over x, is the overlap of LK and total variation.

    r is the probability that a step begins at a position (see `start_probabilities`). It is not
    differentiated: the objective says how long the steps are, not where they begin. Its mean is
    made 1 over the positions whose first token is wanted, so that learning rates keep their
    meaning. `step_starts=false`: r = 1 at every position.

    The source is our own derivation, from the distribution of A given the text. As that of total
    variation, the gradient vanishes where q is far below p.

    Raises:
        UserError: a negative temperature, or `step_starts` is no boolean.
    """

    def __init__(self, temperature: float = 1.0, step_starts: bool = True):
        require_number("temperature", temperature, 0.0)
        require(isinstance(step_starts, bool), "step_starts", step_starts, "true or false")
        self._temperature = temperature
        self._step_starts = step_starts

    @property
    def uses_verifier(self) -> bool:
        """Not at temperature 0, where the text says what the verifier's distribution is."""
        return self._temperature > 0

    @property
    def needs_all(self) -> bool:
        """Where steps begin follows from where the ones before them ended."""
        return self._step_starts

    def __call__(self, logits: Tensor, target_ids: Tensor, log_p: Tensor | None) -> Tensor:
        """Score each token by -log w: [n, V], [n], [n, V] -> [n] nats."""
        temperature = self._temperature or 1.0
        surprise = -_log_prob(logits, target_ids, temperature)
        if not self.uses_verifier:
            return surprise
        assert log_p is not None
        return (surprise + _log_prob(log_p, target_ids, temperature)).clamp(min=0)

    @torch.no_grad()
    def weights(self, positions: Tensor, wanted: Tensor, scores: Callable[[], Tensor]) -> Tensor:
        """Return r at each position, or 1 at all of them: [n], [n, K] -> [n]."""
        if not self._step_starts:
            return torch.ones(len(positions), device=positions.device)
        survival = _survival(scores().double(), wanted)
        starts = start_probabilities(positions, wanted, survival)
        return (starts * wanted[:, 0].sum() / starts.sum().clamp(min=1)).float()

    def combine(self, scores: Tensor, wanted: Tensor) -> Tensor:
        """Return -E[A | text] of the steps that begin at n positions: [n, K] each -> [n]."""
        return -_survival(scores, wanted).sum(dim=1)

    def __str__(self) -> str:
        weight = "where steps begin" if self._step_starts else "everywhere alike"
        return f"ExpectedAccepted at temperature {self._temperature}, {weight}"


def _survival(scores: Tensor, wanted: Tensor) -> Tensor:  # [n, K] each -> [n, K]
    """Return P(A >= k | text); the first token that is not wanted ends the step."""
    return (-scores.cumsum(dim=1)).exp() * wanted.cumprod(dim=1)


def _log_prob(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:  # [n, V], [n]
    """Return the log-probabilities [n] of the tokens at a temperature."""
    scaled = logits / temperature
    return scaled.gather(1, token_ids[:, None])[:, 0] - scaled.logsumexp(dim=-1)

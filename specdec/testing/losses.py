"""Is a loss a function of single tokens and their distributions, with a gradient?"""

import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.training.objective import Loss
from specdec.training.step_loss import of_steps

NUM, SIZE, DEPTH = 6, 11, 3  # tokens, vocabulary, tokens of a step
ROUNDING = 1e-6


def check_loss(loss: Loss) -> None:
    """Score random tokens, alone and together, and look at the gradient.

    A loss of steps is tried on its single tokens and on how it combines them.

    Raises:
        UserError: scores of another shape, no numbers, scores that depend on other tokens, or no
            gradient of a distribution.
    """
    name = f"{type(loss).__module__}.{type(loss).__qualname__}"
    if not isinstance(getattr(loss, "uses_verifier", None), bool):
        raise UserError(f"{name}.uses_verifier: expected True or False")
    noise = torch.Generator().manual_seed(0)
    logits, verifier_logits = torch.randn(2, NUM, SIZE, generator=noise, dtype=torch.float64)
    target_ids = torch.randint(SIZE, (NUM,), generator=noise)
    log_p = verifier_logits.log_softmax(dim=-1) if loss.uses_verifier else None
    scores = loss(logits, target_ids, log_p)
    if scores.shape != (NUM,) or not bool(scores.isfinite().all()):
        raise UserError(f"{name}: expected {NUM} finite scores [n], of logits [n, V]; not {scores}")
    for place in range(NUM):
        one = slice(place, place + 1)
        alone = loss(logits[one], target_ids[one], None if log_p is None else log_p[one])
        if not torch.allclose(alone, scores[one]):
            raise UserError(f"{name}: the score of a token depends on the tokens beside it")
    _require_gradient(loss, name, logits, target_ids, log_p)
    _require_steps(loss, name)


def _require_gradient(
    loss: Loss, name: str, logits: Tensor, target_ids: Tensor, log_p: Tensor | None
) -> None:
    """A loss of distributions does not see a constant that is added to all logits."""
    wanted = logits.clone().requires_grad_(True)
    scores = loss(wanted, target_ids, log_p)
    if not scores.requires_grad:
        raise UserError(f"{name}: no gradient reaches the logits")
    (gradient,) = torch.autograd.grad(scores.sum(), wanted)
    if not bool(gradient.isfinite().all()) or not bool(gradient.abs().sum() > 0):
        raise UserError(f"{name}: its gradient is not finite, or zero at random logits")
    if float(gradient.sum(dim=-1).abs().max()) > ROUNDING:
        raise UserError(f"{name}: its gradient follows a constant added to all logits of a token")


def _require_steps(loss: Loss, name: str) -> None:
    """Combine the depths of steps: what is not wanted must not count."""
    steps = of_steps(loss, decay=0.8)
    noise = torch.Generator().manual_seed(2)
    scores = torch.rand(NUM, DEPTH, generator=noise)
    wanted = torch.arange(DEPTH) <= torch.arange(NUM)[:, None] % DEPTH
    combined = steps.combine(scores, wanted)
    other = steps.combine(torch.where(wanted, scores, scores + 1), wanted)
    if combined.shape != (NUM,) or not torch.allclose(combined, other):
        raise UserError(f"{name}.combine: expected [n] of [n, K], whatever is not wanted")
    weights = steps.weights(torch.arange(NUM), wanted, lambda: scores)
    if weights.shape != (NUM,) or not bool((weights >= 0).all()):
        raise UserError(f"{name}.weights: expected a weight >= 0 for each of {NUM} positions")

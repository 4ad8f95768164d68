"""The losses against their formulas, written out in another way."""

import pytest
import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.training.loss.cross_entropy import CrossEntropy
from specdec.training.loss.kl import KL
from specdec.training.loss.lk import LK
from specdec.training.loss.total_variation import TotalVariation
from specdec.training.objective import Loss

N, V = 7, 13


def rows(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(N, V, generator=generator, dtype=torch.float64)


LOGITS, VERIFIER = rows(1), rows(2).log_softmax(-1)
TARGETS = torch.arange(N) % V


def gradient(loss: Loss, logits: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    loss(logits, TARGETS, VERIFIER).sum().backward()
    assert logits.grad is not None
    return logits.grad


def test_cross_entropy_is_the_token_s_surprise() -> None:
    q = LOGITS.softmax(-1)
    expected = torch.stack([-q[row, token].log() for row, token in enumerate(TARGETS)])
    torch.testing.assert_close(CrossEntropy()(LOGITS, TARGETS, None), expected)


def test_kl_is_cross_entropy_less_entropy() -> None:
    p, q = VERIFIER.softmax(-1), LOGITS.softmax(-1)
    expected = -(p * q.log()).sum(-1) + (p * p.log()).sum(-1)
    torch.testing.assert_close(KL()(LOGITS, TARGETS, VERIFIER), expected)


def test_kl_pulls_like_cross_entropy_with_soft_labels() -> None:
    expected = LOGITS.softmax(-1) - VERIFIER.softmax(-1)
    torch.testing.assert_close(gradient(KL(), LOGITS), expected)


def test_total_variation_is_half_the_distance() -> None:
    p, q = VERIFIER.softmax(-1), LOGITS.softmax(-1)
    expected = (p - q).abs().sum(-1) / 2
    torch.testing.assert_close(TotalVariation()(LOGITS, TARGETS, VERIFIER), expected)


def test_lk_pulls_like_total_variation_over_the_overlap() -> None:
    """grad(-log alpha) = grad(TV) / alpha: it does not vanish where little overlaps."""
    p, q = VERIFIER.softmax(-1), LOGITS.softmax(-1)
    overlap = p.minimum(q).sum(-1, keepdim=True)
    expected = gradient(TotalVariation(), LOGITS) / overlap
    torch.testing.assert_close(gradient(LK(eta=None), LOGITS), expected)


@pytest.mark.parametrize("eta", [0.0, 3.0])
def test_lk_blends_by_the_overlap(eta: float) -> None:
    kl, distance = (loss(LOGITS, TARGETS, VERIFIER) for loss in (KL(), TotalVariation()))
    share = (-eta * (1 - distance)).exp()
    expected = share * kl + (1 - share) * distance
    torch.testing.assert_close(LK(eta)(LOGITS, TARGETS, VERIFIER), expected)
    pull = share[:, None] * gradient(KL(), LOGITS)
    pull = pull + (1 - share)[:, None] * gradient(TotalVariation(), LOGITS)
    torch.testing.assert_close(gradient(LK(eta), LOGITS), pull, msg="lambda was differentiated")


@pytest.mark.parametrize(
    "loss", [KL(), TotalVariation(), LK(), LK(None)], ids=["kl", "tv", "lk", "log_overlap"]
)
def test_nothing_is_lost_where_draft_and_verifier_agree(loss: Loss) -> None:
    torch.testing.assert_close(
        loss(VERIFIER, TARGETS, VERIFIER), torch.zeros(N, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_a_bad_eta_is_named() -> None:
    with pytest.raises(UserError, match=r"^eta=-1"):
        LK(-1)

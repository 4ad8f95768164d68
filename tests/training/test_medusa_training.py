"""Heads learn what they are shown, chunk by chunk, and the engine accepts what they learnt."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load
from specdec.proposer.medusa import Medusa as MedusaProposer
from specdec.proposer.none import NoProposer
from specdec.training import medusa
from specdec.training.loss.cross_entropy import CrossEntropy
from specdec.training.loss.kl import KL
from specdec.training.loss.lk import LK
from specdec.training.loss.total_variation import TotalVariation
from specdec.training.medusa import HeadLosses, Medusa
from specdec.training.objective import Batch
from specdec.training.trainer import Trainer
from specdec.tree.sparse import Sparse
from specdec.verification.rejection import Rejection

K = 3
LOSSES = [CrossEntropy(), KL(), TotalVariation(), LK()]


@pytest.fixture
def verifier(tiny) -> HFCausalLM:
    return load(str(tiny.verifier))


def objective(verifier: HFCausalLM, tiny, loss: Any = None, **options: Any) -> Medusa:
    text = str(tiny.text)
    return Medusa(verifier, loss or CrossEntropy(), text, text, K, max_length=24, **options)


def disturb(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for weight in module.parameters():
        weight.data.add_(0.2 * torch.randn(weight.shape, generator=generator))


def masked(batch: Batch) -> Batch:
    """Count two thirds of the tokens."""
    generator = torch.Generator().manual_seed(6)
    chosen = torch.rand(batch.counted.shape, generator=generator) < 0.67
    return Batch(batch.token_ids, chosen)


def by_hand(one: Medusa, loss: Any, batch: Batch, decay: float) -> Tensor:
    """One token after another: head i at t speaks about t + 2 + i; the verifier at t + 1 + i."""
    assert isinstance(one.module, HeadLosses)
    model = one._verifier.model
    total = torch.zeros(())
    for ids, counted in zip(batch.token_ids, batch.counted, strict=True):
        hidden = model.base_model(ids[None]).last_hidden_state[0]
        own = model(ids[None]).logits[0]
        for t in range(len(ids)):
            logits = one.module.heads(hidden[t : t + 1], one._verifier.unembed)[0]
            for head in range(K):
                target = t + 2 + head
                if target < len(ids) and counted[target]:
                    score = loss(logits[head][None], ids[target][None], own[target - 1][None])
                    total = total + decay**head * score.sum()
    return total


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_the_loss_is_the_sum_over_counted_tokens(verifier, tiny, loss: Any) -> None:
    one = objective(verifier, tiny, loss, decay=0.5)
    disturb(one.module)
    batch = masked(one.batch(0, 2))
    with torch.no_grad():
        expected = by_hand(one, loss, batch, 0.5)
        torch.testing.assert_close(one.loss(one.module, batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_chunks_change_nothing(verifier, tiny, loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = objective(verifier, tiny, loss)
    disturb(one.module)
    batch = masked(one.batch(0, 2))

    def gradients() -> list[Tensor]:
        one.module.zero_grad()
        one.loss(one.module, batch).backward()
        return [weight.grad.clone() for weight in one.module.parameters()]

    whole = gradients()
    monkeypatch.setattr(medusa, "LOGITS_AT_ONCE", 5 * verifier.vocab_size)
    torch.testing.assert_close(gradients(), whole)


def test_only_the_heads_are_trained(verifier, tiny, tmp_path: Path) -> None:
    before = {name: weight.clone() for name, weight in verifier.model.named_parameters()}
    one = objective(verifier, tiny)
    Trainer(max_steps=2, per_device_train_batch_size=2, warmup_steps=0).fit(one, tmp_path)
    for name, weight in verifier.model.named_parameters():
        assert torch.equal(weight, before[name]), f"{name} of the verifier was changed"
    names = {name for name, _ in one.module.named_parameters()}
    assert all(name.startswith("heads.") for name in names)


@pytest.mark.parametrize("loss", [CrossEntropy(), KL(), LK()], ids=lambda loss: type(loss).__name__)
def test_what_was_learnt_by_heart_is_accepted(
    verifier, tiny, tmp_path: Path, loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train -> save -> load -> decode: the verifier's own greedy text, overfitted, is drafted."""
    prompt = verifier.encode("def add(first")
    options: dict[str, Any] = {"sampling": Sampling(0), "stopping": Stopping(40)}
    plain = SpeculativeDecoder(verifier, NoProposer(), Rejection(), **options)
    (written,) = plain.decode([Request("a", prompt)])
    text = Batch.of(torch.tensor([[*prompt, *written.output_ids]]))

    one = objective(verifier, tiny, loss, decay=1.0)
    monkeypatch.setattr(one, "batch", lambda first, count: text)
    monkeypatch.setattr(one, "_held_out", text)
    trainer = Trainer(max_steps=150, learning_rate=1e-2, warmup_steps=5, weight_decay=0.0)
    evaluation = trainer.fit(one, tmp_path)
    if not loss.uses_verifier:  # a head may be unsure where the verifier is
        accuracy = [evaluation[f"eval_head{head}_top1"] for head in range(K)]
        assert accuracy == [1.0] * K

    proposer = MedusaProposer.load(str(tmp_path), verifier, Sparse([[0] * K]))
    decoder = SpeculativeDecoder(verifier, proposer, Rejection(), **options)
    (drafted,) = decoder.decode([Request("a", prompt)])
    assert drafted.output_ids == written.output_ids
    accepted = sum(step.accepted for step in drafted.steps)
    submitted = sum(step.drafted for step in drafted.steps)
    least = 1.0 if not loss.uses_verifier else 0.7
    assert accepted >= least * submitted, f"{accepted} of {submitted} accepted"


def test_heads_of_another_verifier_are_refused(verifier, tiny, tmp_path: Path) -> None:
    one = objective(verifier, tiny)
    one.save(one.module, tmp_path)
    tree = Sparse([[0]])
    assert MedusaProposer.load(str(tmp_path), verifier, tree).max_depth == 1
    with torch.no_grad():
        verifier.model.get_input_embeddings().weight[0, 0] += 1
    try:
        with pytest.raises(UserError, match=r"trained on another verifier.*weights differ"):
            MedusaProposer.load(str(tmp_path), verifier, tree)
        assert MedusaProposer.load(str(tmp_path), verifier, tree, force=True).max_depth == 1
    finally:
        with torch.no_grad():
            verifier.model.get_input_embeddings().weight[0, 0] -= 1


@pytest.mark.parametrize("path", [None, "", "nowhere", "empty"])
def test_a_folder_without_heads_is_named(verifier, tmp_path: Path, path: str | None) -> None:
    (tmp_path / "empty").mkdir()
    given = str(tmp_path / path) if path else path
    with pytest.raises(UserError, match=r"^proposer\.path="):
        MedusaProposer.load(given, verifier, Sparse([[0]]))

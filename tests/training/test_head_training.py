"""Heads learn what they are shown, chunk by chunk, and the engine accepts what they learnt."""

from dataclasses import replace
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
from specdec.heads.base import Heads
from specdec.lm.hf import HFCausalLM
from specdec.training import head_losses
from specdec.training.acceptance import Acceptance
from specdec.training.chained import ChainedTraining
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.head_losses import HeadLosses
from specdec.training.heads import HeadTraining
from specdec.training.loss.cross_entropy import CrossEntropy
from specdec.training.loss.kl import KL
from specdec.training.loss.total_variation import TotalVariation
from specdec.training.medusa import MedusaTraining
from specdec.training.objective import Batch
from specdec.training.trainer import Trainer
from specdec.tree.chain import Chain
from specdec.tree.sparse import Sparse
from specdec.verification.rejection import Rejection
from tests.support.every_loss import LOSSES, each_loss, greedy

K = 3
PREFIX = {"prefix_attention": True, "num_attention_heads": 4}
KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "medusa": (MedusaTraining, {}),
    "medusa shared": (MedusaTraining, {"own_vocabulary_head": False, "num_layers": 2}),
    "medusa markov": (MedusaTraining, {"correction": "markov", "rank": 5}),
    "markov shared": (
        MedusaTraining,
        {"correction": "markov", "rank": 5, "own_vocabulary_head": False},
    ),
    "token": (ChainedTraining, {"link": "token", "num_layers": 2}),
    "hidden": (ChainedTraining, {"link": "hidden"}),
    "both": (ChainedTraining, {"link": "both", "own_vocabulary_head": False}),
    "token prefix": (ChainedTraining, {"link": "token", **PREFIX}),
    "both prefix": (ChainedTraining, {"link": "both", "num_layers": 2, **PREFIX}),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def objective(states: VerifierStates, kind: str, loss: Any, **more: Any) -> HeadTraining:
    cls, options = KINDS[kind]
    acceptance = Acceptance(Chain(K), Sampling(0), num_prompts=2, max_new_tokens=12)
    found = cls(states, loss, acceptance, **{"num_heads": K, **options, **more})
    found.prepare()
    return found


def losses_of(one: HeadTraining) -> HeadLosses:
    assert isinstance(one.module, HeadLosses)
    return one.module


def disturb(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for weight in module.parameters():
        weight.data.add_(0.2 * torch.randn(weight.shape, generator=generator))


def masked(batch: Batch) -> Batch:
    """Count two thirds of the tokens."""
    generator = torch.Generator().manual_seed(6)
    chosen = torch.rand(batch.counted.shape, generator=generator) < 0.67
    return Batch(batch.token_ids, chosen)


def by_hand(one: HeadTraining, loss: Any, batch: Batch, decay: float) -> Tensor:
    """One token after another: head i at t speaks about t + 2 + i; the verifier at t + 1 + i."""
    heads, verifier = losses_of(one).heads, one.states.verifier
    assert isinstance(heads, Heads)
    total = torch.zeros(())
    for ids, counted in zip(batch.token_ids, batch.counted, strict=True):
        hidden = verifier.model.base_model(ids[None]).last_hidden_state[0]
        own = verifier.model(ids[None]).logits[0].log_softmax(-1)
        read = hidden if heads.prefix is None else heads.prefix(hidden[None])[0]
        for t in range(len(ids)):
            state = read[t]
            for head in range(K):
                target = t + 2 + head
                if target >= len(ids):
                    break
                state = heads.step(head, read[t], verifier.embed(ids[t + 1 : target]), state)
                logits = heads.logits(head, state, ids[target - 1], verifier.unembed)
                if counted[target]:
                    score = loss(logits[None], ids[target][None], own[target - 1][None])
                    total = total + decay**head * score.sum()
    return total


@each_kind
@each_loss
def test_the_loss_is_the_sum_over_counted_tokens(
    states: VerifierStates, kind: str, loss: Any
) -> None:
    one = objective(states, kind, loss, decay=0.5)
    disturb(one.module)
    batch = masked(one.batch(0, 2))
    with torch.no_grad():
        expected = by_hand(one, loss, batch, 0.5)
    found = one.loss(one.module, batch)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-3)


def gradients(one: HeadTraining, batch: Batch) -> dict[str, Tensor]:
    one.module.zero_grad()
    one.loss(one.module, batch).backward()
    found = {name: weight.grad for name, weight in one.module.named_parameters()}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


@each_kind
@each_loss
def test_chunks_change_nothing(
    states: VerifierStates, kind: str, loss: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = objective(states, kind, loss)
    disturb(one.module)
    batch = masked(one.batch(0, 2))
    whole = gradients(one, batch)
    assert whole.keys() == dict(one.module.named_parameters()).keys()
    monkeypatch.setattr(head_losses, "LOGITS_AT_ONCE", 5 * K * losses_of(one).heads.vocab_size)
    torch.testing.assert_close(gradients(one, batch), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["medusa", "medusa shared", "markov shared", "both prefix"])
def test_gradients_are_those_of_differences(states: VerifierStates, kind: str) -> None:
    """The chunks differentiate themselves, so autograd's own bookkeeping does not vouch for it."""
    one = objective(states, kind, KL())
    disturb(one.module)
    one.module.double()
    states.verifier.model.double()
    try:
        batch = one.batch(0, 1)
        hidden = states.hidden(batch).double()

        def score() -> Tensor:
            return one.module(states.verifier, hidden, batch.token_ids, batch.counted)

        score().backward()
        generator = torch.Generator().manual_seed(7)
        for weight in one.module.parameters():
            assert weight.grad is not None
            direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                weight.add_(3e-4 * direction)
                above = score().double()
                weight.sub_(6e-4 * direction)
                below = score().double()
                weight.add_(3e-4 * direction)
            slope = (above - below) / 6e-4
            expected = (weight.grad * direction).sum()
            rounding = float(1e-7 * above.abs() / 3e-4)  # the sum itself is in fp32
            torch.testing.assert_close(slope, expected, rtol=2e-2, atol=2e-2 + rounding)
    finally:
        states.verifier.model.float()


def test_a_share_of_the_positions_is_right_on_average(states: VerifierStates) -> None:
    batch = masked(states.batch(0, 2))
    whole = objective(states, "token", CrossEntropy())
    part = objective(states, "token", CrossEntropy(), share=0.3)
    torch.manual_seed(0)
    with torch.no_grad():
        found = torch.stack([part.loss(part.module, batch) for _ in range(400)])
        expected = whole.loss(whole.module, batch)
    assert found.std() > 0
    assert abs(found.mean() - expected) < 4 * found.std() / 20
    with pytest.raises(UserError, match=r"share=0: expected a number in"):
        objective(states, "token", CrossEntropy(), share=0)


@each_kind
def test_only_the_heads_are_trained(states: VerifierStates, tmp_path: Path, kind: str) -> None:
    model = states.verifier.model
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    one = objective(states, kind, CrossEntropy())
    start = {name: weight.clone() for name, weight in one.module.named_parameters()}
    Trainer(max_steps=2, per_device_train_batch_size=2, warmup_steps=0).fit(one, tmp_path)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), f"{name} of the verifier was changed"
    for name, weight in one.module.named_parameters():
        assert name.startswith("heads.")
        assert not torch.equal(weight, start[name]), f"{name} was not trained"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "loss"),
    # Losses and kinds know nothing of each other; sums and chunks are tested for all pairs.
    [*((kind, CrossEntropy()) for kind in KINDS), *(("both", loss) for loss in LOSSES[1:])],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_was_learnt_by_heart_is_accepted(
    verifier: HFCausalLM,
    states: VerifierStates,
    tmp_path: Path,
    kind: str,
    loss: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Train -> save -> load -> decode: the verifier's own greedy text, overfitted, is drafted."""
    prompt, written = greedy(verifier)
    token_ids = torch.tensor([[*prompt, *written]])
    text = Batch(token_ids, torch.arange(token_ids.shape[1])[None] >= len(prompt))
    monkeypatch.setattr(states, "batch", lambda first, count: text)
    monkeypatch.setattr(states, "_prepared", replace(states._data, held_out=text))
    # The greedy choices alone are what is learnt: a head may be unsure where the verifier is.
    monkeypatch.setattr(
        head_losses.HeadLosses,
        "_verifier_log_p",
        certain if loss.uses_verifier else HeadLosses._verifier_log_p,
    )
    one = objective(states, kind, loss, decay=1.0)
    if isinstance(loss, TotalVariation):  # whose gradient vanishes far from the goal
        warm = objective(states, kind, CrossEntropy(), decay=1.0)
        Trainer(max_steps=100, learning_rate=1e-2, warmup_steps=5).fit(warm, tmp_path / "warm")
        one.module.load_state_dict(warm.module.state_dict())
    rate = 1e-3 if isinstance(loss, TotalVariation) else 1e-2
    trainer = Trainer(max_steps=150, learning_rate=rate, warmup_steps=5, weight_decay=0.0)
    evaluation = trainer.fit(one, tmp_path / "heads")
    assert [evaluation[f"eval_head{head}_top1"] for head in range(K)] == [1.0] * K

    proposer = one.proposer.load(str(tmp_path / "heads"), verifier, Sparse([[0] * K]))
    decoder = SpeculativeDecoder(verifier, proposer, Rejection(), Sampling(0), Stopping(40))
    (drafted,) = decoder.decode([Request("a", prompt)])
    assert list(drafted.output_ids) == written
    assert all(step.accepted == step.drafted for step in drafted.steps)


def certain(
    self: HeadLosses, verifier: HFCausalLM, flat_hidden: Tensor, positions: Tensor, num_heads: int
):
    """Stand in for a verifier that is sure of its greedy choice."""
    log_p = verifier.unembed(flat_hidden).float().log_softmax(dim=-1)
    sure = (50 * log_p).log_softmax(dim=-1)
    for head in range(num_heads):
        yield sure[(positions + 1 + head).clamp(max=len(flat_hidden) - 1)]


def test_heads_of_another_verifier_are_refused(
    verifier: HFCausalLM, states: VerifierStates, tmp_path: Path
) -> None:
    one = objective(states, "medusa", CrossEntropy())
    one.save(one.module, tmp_path, {})
    tree = Sparse([[0]])
    assert one.proposer.load(str(tmp_path), verifier, tree).max_depth == 1
    with torch.no_grad():
        embedding: Any = verifier.model.get_input_embeddings()
    embedding.weight[0, 0] += 1
    try:
        with pytest.raises(UserError, match=r"trained on another verifier.*weights differ"):
            one.proposer.load(str(tmp_path), verifier, tree)
        assert one.proposer.load(str(tmp_path), verifier, tree, force=True).max_depth == 1
    finally:
        with torch.no_grad():
            embedding.weight[0, 0] -= 1


@pytest.mark.parametrize("path", [None, "", "nowhere", "empty"])
@pytest.mark.parametrize("kind", ["medusa", "token"])
def test_a_folder_without_heads_is_named(
    verifier: HFCausalLM, tmp_path: Path, kind: str, path: str | None
) -> None:
    (tmp_path / "empty").mkdir()
    given = str(tmp_path / path) if path else path
    with pytest.raises(UserError, match=r"^path="):
        KINDS[kind][0].proposer.load(given, verifier, Sparse([[0]]))


def test_one_kind_of_heads_is_not_loaded_as_another(
    verifier: HFCausalLM, states: VerifierStates, tmp_path: Path
) -> None:
    one = objective(states, "token", CrossEntropy())
    one.save(one.module, tmp_path, {})
    with pytest.raises(UserError, match=r"^path=.*no MedusaHeads"):
        MedusaTraining.proposer.load(str(tmp_path), verifier, Sparse([[0]]))


def test_a_tree_deeper_than_the_heads_is_refused_before_training(states: VerifierStates) -> None:
    with pytest.raises(UserError, match="3 levels, but there are 2 heads"):
        objective(states, "medusa", CrossEntropy(), num_heads=2)

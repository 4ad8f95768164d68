"""A draft learns the verifier's distribution, chunk by chunk, and decoding accepts the outcome."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load
from specdec.proposer.draft_model import DraftModel
from specdec.training import token_losses
from specdec.training.acceptance import Acceptance
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.draft_losses import DraftLosses
from specdec.training.draft_model import DraftModelTraining
from specdec.training.loss.cross_entropy import CrossEntropy
from specdec.training.loss.kl import KL
from specdec.training.loss.total_variation import TotalVariation
from specdec.training.objective import Batch
from specdec.training.trainer import Trainer
from specdec.tree.chain import Chain
from specdec.verification.rejection import Rejection
from tests.support.every_loss import LOSSES, each_loss, greedy
from tests.support.families import SCALED, random_ids, tiny_model
from tests.support.running import Tiny

GAMMA = 3
SMALL: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2}


def objective(states: VerifierStates, loss: Any, **options: Any) -> DraftModelTraining:
    acceptance = Acceptance(Chain(GAMMA), Sampling(0), num_prompts=2, max_new_tokens=12)
    found = DraftModelTraining(states, loss, acceptance, **(SMALL | options))
    found.prepare()
    return found


def losses_of(one: DraftModelTraining) -> DraftLosses:
    assert isinstance(one.module, DraftLosses)
    return one.module


def masked(batch: Batch) -> Batch:
    """Count two thirds of the tokens, in rows of unlike lengths."""
    generator = torch.Generator().manual_seed(6)
    chosen = torch.rand(batch.counted.shape, generator=generator) < 0.67
    chosen[0, 17:] = False
    return Batch(batch.token_ids, chosen)


def unchunked(one: DraftModelTraining, loss: Any, batch: Batch) -> Tensor:
    """One token after another, with the models' own logits: those at t speak about t + 1."""
    verifier, model = one.states.verifier.model, losses_of(one).model
    total = torch.zeros(())
    for ids, counted in zip(batch.token_ids, batch.counted, strict=True):
        logits = model(ids[None]).logits[0]
        with torch.no_grad():
            log_p = verifier(ids[None]).logits[0].log_softmax(-1)
        for t in range(len(ids) - 1):
            if counted[t + 1]:
                total = total + loss(logits[t][None], ids[t + 1][None], log_p[t][None]).sum()
    return total


def gradients(one: DraftModelTraining, total: Tensor) -> dict[str, Tensor]:
    one.module.zero_grad()
    total.backward()
    found = {name: weight.grad for name, weight in one.module.named_parameters()}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def disturbed(states: VerifierStates, loss: Any, **options: Any) -> DraftModelTraining:
    """A draft that has opinions: a fresh one's logits are all but equal."""
    one = objective(states, loss, **options)
    generator = torch.Generator().manual_seed(5)
    for weight in one.module.parameters():
        weight.data.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return one


@each_loss
@pytest.mark.parametrize("start", ["fresh", "draft"])
@pytest.mark.parametrize("size", [None, 5])
def test_the_loss_and_its_gradients_are_those_token_by_token(
    states: VerifierStates,
    tiny: Tiny,
    loss: Any,
    start: str,
    size: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the chunks, and whether the head is the embedding (fresh) or not (draft)."""
    options = {} if start == "fresh" else {"init_path": str(tiny.draft)}
    one = disturbed(states, loss, **options)
    assert losses_of(one).model.config.tie_word_embeddings == (start == "fresh")
    if size is not None:
        monkeypatch.setattr(token_losses, "LOGITS_AT_ONCE", size * states.verifier.vocab_size)
    batch = masked(one.batch(0, 2))
    by_hand = unchunked(one, loss, batch)
    expected = gradients(one, by_hand)
    total = one.loss(one.module, batch)
    torch.testing.assert_close(total.detach(), by_hand.detach(), rtol=1e-5, atol=1e-4)
    found = gradients(one, total)
    assert found.keys() == expected.keys() == dict(one.module.named_parameters()).keys()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_share_of_the_positions_is_right_on_average(states: VerifierStates) -> None:
    batch = masked(states.batch(0, 2))
    whole, part = disturbed(states, KL()), disturbed(states, KL(), share=0.3)
    torch.manual_seed(0)
    with torch.no_grad():
        found = torch.stack([part.loss(part.module, batch) for _ in range(400)])
        expected = whole.loss(whole.module, batch)
        measured = losses_of(part).measures(
            states.hidden(batch), batch.token_ids, batch.counted, KL()
        )
    assert found.std() > 0
    assert abs(found.mean() - expected) < 4 * found.std() / 20
    torch.testing.assert_close(measured, expected)


def test_nothing_counted_is_no_loss(states: VerifierStates) -> None:
    batch = states.batch(0, 1)
    one = objective(states, KL())
    total = one.loss(one.module, Batch(batch.token_ids, torch.zeros_like(batch.counted)))
    total.backward()
    assert total == 0


def test_the_evaluation_is_that_of_the_counted_held_out_tokens(
    states: VerifierStates, tmp_path: Path
) -> None:
    one = disturbed(states, KL())
    states._prepared = replace(states._data, held_out=masked(states.held_out))
    with torch.no_grad():
        found = one.evaluate(one.module)
        count = states.held_out.num_counted
        loss = unchunked(one, KL(), states.held_out) / count
        distance = unchunked(one, TotalVariation(), states.held_out) / count
    assert found["eval_loss"] == pytest.approx(float(loss), rel=1e-4)
    assert found["eval_overlap"] == pytest.approx(1 - float(distance), rel=1e-4)
    assert 1 <= found["eval_block_efficiency"] <= GAMMA + 1


def certain(self: DraftLosses, hidden: Tensor) -> Tensor:
    """Stand in for a verifier that is sure of its greedy choice."""
    return (50 * self._verifier.unembed(hidden).float().log_softmax(dim=-1)).log_softmax(dim=-1)


@each_loss
def test_what_was_learnt_by_heart_is_accepted(
    verifier: HFCausalLM,
    states: VerifierStates,
    tmp_path: Path,
    loss: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Train -> save -> load -> decode: the verifier's own greedy text, overfitted, is drafted."""
    prompt, written = greedy(verifier)
    token_ids = torch.tensor([[*prompt, *written]])
    text = Batch(token_ids, torch.arange(token_ids.shape[1])[None] >= len(prompt))
    monkeypatch.setattr(states, "batch", lambda first, count: text)
    monkeypatch.setattr(states, "_prepared", replace(states._data, held_out=text))
    # The greedy choices alone are what is learnt: a draft may be unsure where the verifier is.
    monkeypatch.setattr(DraftLosses, "_log_p", certain)
    one = objective(states, loss)
    if isinstance(loss, TotalVariation):  # whose gradient vanishes far from the goal
        warm = objective(states, CrossEntropy())
        Trainer(max_steps=100, learning_rate=1e-2, warmup_steps=5).fit(warm, tmp_path / "warm")
        one.module.load_state_dict(warm.module.state_dict())
    rate = 1e-3 if isinstance(loss, TotalVariation) else 1e-2
    trainer = Trainer(max_steps=120, learning_rate=rate, warmup_steps=5, weight_decay=0.0)
    evaluation = trainer.fit(one, tmp_path / "draft")
    assert evaluation["eval_overlap"] > 0.9

    draft = load(str(tmp_path / "draft"), vocabulary_of=str(verifier.model.config._name_or_path))
    assert draft.max_length == verifier.max_length
    assert draft.end_ids == verifier.end_ids
    proposer = DraftModel(draft, Chain(GAMMA))
    decoder = SpeculativeDecoder(verifier, proposer, Rejection(), Sampling(0), Stopping(40))
    (drafted,) = decoder.decode([Request("a", prompt)])
    assert list(drafted.output_ids) == written
    assert all(step.accepted == step.drafted for step in drafted.steps)


@pytest.mark.parametrize("loss", LOSSES[1:], ids=lambda loss: type(loss).__name__)
def test_training_raises_the_overlap_and_leaves_the_verifier_alone(
    states: VerifierStates, tmp_path: Path, loss: Any
) -> None:
    one = objective(states, loss)
    before = {name: value.clone() for name, value in states.verifier.model.state_dict().items()}
    with torch.no_grad():
        start = one.evaluate(one.module)
    trainer = Trainer(40, 4, learning_rate=1e-2, warmup_steps=4, weight_decay=0.0)
    end = trainer.fit(one, tmp_path)
    assert end["eval_overlap"] > start["eval_overlap"] + 0.02
    assert end["eval_loss"] < start["eval_loss"]
    for name, value in states.verifier.model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the verifier was changed"


@pytest.mark.parametrize("start", ["fresh", "draft"])
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    states: VerifierStates, tiny: Tiny, tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints hold one of two tied weights; both must come back."""

    options = {} if start == "fresh" else {"init_path": str(tiny.draft)}
    trainer = Trainer(4, 2, warmup_steps=0, save_steps=2)
    whole = objective(states, KL(), **options)
    trainer.fit(whole, tmp_path / "whole")

    def interrupt(first: int, count: int) -> Batch:
        if first >= 3 * count:
            raise KeyboardInterrupt
        return states.batch(first, count)

    stopped = objective(states, KL(), **options)
    monkeypatch.setattr(stopped, "batch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(stopped, tmp_path / "resumed")
    resumed = objective(states, KL(), seed=1, **options)  # nothing comes from its seed
    trainer.fit(resumed, tmp_path / "resumed")
    torch.testing.assert_close(resumed.module.state_dict(), whole.module.state_dict())
    model = losses_of(resumed).model
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head is not None
    assert (head.weight is embedding.weight) == (start == "fresh")


def test_a_draft_is_trained_on_from_where_it_is(
    states: VerifierStates, tiny: Tiny, tmp_path: Path
) -> None:
    """And the weights that others load are not touched."""
    shared = load(str(tiny.draft)).model
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    one = objective(states, KL(), init_path=str(tiny.draft))
    with torch.no_grad():
        assert one.evaluate(one.module)["eval_overlap"] > 0.5, "not the draft at init_path"
    Trainer(2, 2, warmup_steps=0).fit(one, tmp_path)
    for name, value in losses_of(one).model.state_dict().items():
        assert torch.equal(shared.state_dict()[name], before[name]), f"{name} is shared"
        assert not torch.equal(value, before[name]), f"{name} was not trained"


def test_the_verifier_itself_may_be_the_start(states: VerifierStates, tiny: Tiny) -> None:
    one = objective(states, KL(), init_path=str(tiny.verifier))
    assert all(weight.requires_grad for weight in one.module.parameters())
    with torch.no_grad():
        assert one.evaluate(one.module)["eval_overlap"] == pytest.approx(1, abs=1e-5)


@each_loss
@pytest.mark.parametrize("wide", ["draft", "verifier"])
def test_padding_of_a_vocabulary_is_no_other_vocabulary(tiny: Tiny, loss: Any, wide: str) -> None:
    """Both are over the tokens that both have; one may be drawn that the draft has not."""
    paths = (tiny.verifier, tiny.padded) if wide == "draft" else (tiny.padded, tiny.verifier)
    verifier = load(str(paths[0]))
    states = VerifierStates(verifier, str(tiny.text), str(tiny.text), max_length=24)
    states.prepare()
    one = objective(states, loss, init_path=str(paths[1]))
    batch = one.batch(0, 2)
    padding = batch.token_ids.clone()
    padding[:, 5] = verifier.vocab_size - 1
    for token_ids in (batch.token_ids, padding):
        total = one.loss(one.module, Batch.of(token_ids))
        assert torch.isfinite(total)
        assert total > 0


def test_another_vocabulary_is_refused(states: VerifierStates, tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"^init_path='.*vocabulary of \d+ tokens") as caught:
        objective(states, KL(), init_path=str(tiny.stranger))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", SCALED)
def test_the_distributions_compared_are_the_models_own(family: str) -> None:
    """With scaled and capped logits, on either side."""
    model, verifier = (tiny_model(family, seed, **SCALED[family]) for seed in (1, 2))
    token_ids = torch.tensor([random_ids(9, 0), random_ids(9, 1)])
    lm = HFCausalLM(verifier)
    hidden = verifier.base_model(token_ids).last_hidden_state
    losses = DraftLosses(model, lm, KL())
    found = losses(hidden, token_ids, torch.ones_like(token_ids, dtype=torch.bool))
    log_q, log_p = (each(token_ids).logits.log_softmax(-1)[:, :-1] for each in (model, verifier))
    expected = (log_p.exp() * (log_p - log_q)).sum()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"share": 1.5}, r"share"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 25}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"init_path": 3}, r"init_path"),
        ({"init_path": "nowhere"}, r"init_path"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_wrong_option_is_named(
    states: VerifierStates, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=f"^{named}="):
        objective(states, KL(), **options)

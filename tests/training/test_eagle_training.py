"""Feature chains are trained on their own outputs, and what they say in training they draft."""

import json
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
from specdec.heads.eagle import EagleHead
from specdec.lm.hf import HFCausalLM
from specdec.lm.layer import CachedLayer
from specdec.proposer.eagle import Eagle
from specdec.testing import check_heads
from specdec.training import head_losses
from specdec.training.acceptance import Acceptance
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.eagle import EagleTraining
from specdec.training.expected_acceptance import HeldOut
from specdec.training.head_losses import HeadLosses
from specdec.training.loss.cross_entropy import CrossEntropy
from specdec.training.loss.kl import KL
from specdec.training.objective import Batch
from specdec.training.trainer import Trainer
from specdec.tree.chain import Chain
from specdec.verification.rejection import Rejection
from tests.proposer.test_eagle import distribution
from tests.support.every_loss import LOSSES, greedy

STEPS = 3
KINDS: dict[str, dict[str, Any]] = {
    "eagle1": {"reads": ["final"], "fusion": "project"},
    "eagle3": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "eagle3_1": {"norm_features": True, "norm_output": True},
    "final alone": {"reads": ["final"]},
}
each_kind = pytest.mark.parametrize("kind", KINDS)
WIDTH, VOCAB_SIZE = 16, 23


def objective(states: VerifierStates, kind: str, loss: Any, **more: Any) -> EagleTraining:
    acceptance = Acceptance(Chain(STEPS), Sampling(0), num_prompts=2, max_new_tokens=12)
    found = EagleTraining(states, loss, acceptance, **{"steps": STEPS, **KINDS[kind], **more})
    found.prepare()
    return found


def head_of(one: EagleTraining) -> EagleHead:
    assert isinstance(one.module, HeadLosses)
    assert isinstance(one.module.heads, EagleHead)
    return one.module.heads


def shake(module: torch.nn.Module, amount: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(5)
    for weight in module.parameters():
        weight.data.add_(amount * torch.randn(weight.shape, generator=generator).to(weight.dtype))


def small_head(kind: str) -> EagleHead:
    options = {"reads": [0, 2, "final"], **KINDS[kind]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        head = EagleHead(WIDTH, VOCAB_SIZE, STEPS, **options).double()
    shake(head)
    return head


@torch.no_grad()
def packed(head: EagleHead, features: Tensor, token_ids: Tensor, embed: Any) -> list[Tensor]:
    """The outputs [B, T, H] of each step at every place of B texts, as training computes them."""
    behind = torch.nn.functional.pad(token_ids, (0, STEPS + 1))[:, 1:]
    following = behind.unfold(1, STEPS + 1, 1).flatten(0, 1)
    places = torch.arange(token_ids.numel())
    found = head.forced(features, token_ids, places, following, embed)
    return [state.view(*token_ids.shape, -1) for state in found]


def some_texts(head: EagleHead, length: int) -> tuple[Tensor, Tensor, torch.nn.Embedding]:
    torch.manual_seed(2)
    embed = torch.nn.Embedding(VOCAB_SIZE, WIDTH).double()
    token_ids = torch.randint(VOCAB_SIZE, (2, length))
    features = torch.randn(2, length, head.feature_size, dtype=torch.float64)
    return features, token_ids, embed


@each_kind
@torch.no_grad()
def test_training_rows_are_those_of_decoding(kind: str) -> None:
    """In float64, for accepted blocks of any length, in ragged rows, with rows that are truncated.

    So positions, masks, the order of cells and what is fed back are the same in both.
    """
    head, length = small_head(kind), 24
    features, token_ids, embed = some_texts(head, length)
    expected = packed(head, features, token_ids, embed)
    cells, known, noise = CachedLayer(head.layer), [0, 0], torch.Generator().manual_seed(3)
    cells.open(2, length + STEPS)
    while max(known) + 4 + STEPS < length:
        ends = [start + int(torch.randint(1, 5, (), generator=noise)) for start in known]
        inputs = [
            head.first(features[row, a:b], embed(token_ids[row, a + 1 : b + 1]))
            for row, (a, b) in enumerate(zip(known, ends, strict=True))
        ]
        output = cells.append([0, 1], inputs)[:, None]
        for step in range(STEPS):
            for row, end in enumerate(ends):
                torch.testing.assert_close(
                    output[row, 0], expected[step][row, end - 1], rtol=0, atol=1e-12
                )
            behind = torch.stack([token_ids[row, end + 1 + step] for row, end in enumerate(ends)])
            output = cells.extend([0, 1], head.next(output, embed(behind[:, None])))
        for row, end in enumerate(ends):
            cells.truncate(row, end)
        known = ends


@each_kind
def test_a_row_knows_nothing_of_what_it_predicts(kind: str) -> None:
    """Nor of what follows, of states behind its own, or of another text in the batch."""
    head, length, at = small_head(kind), 12, 5
    features, token_ids, embed = some_texts(head, length)
    before = packed(head, features, token_ids, embed)
    for step in range(STEPS):
        changed, other_states = token_ids.clone(), features.clone()
        changed[0, at + 2 + step :] = (changed[0, at + 2 + step :] + 1) % VOCAB_SIZE
        changed[1] = (changed[1] + 1) % VOCAB_SIZE
        other_states[0, at + 1 :] += 1
        other_states[1] += 1
        after = packed(head, other_states, changed, embed)
        assert torch.equal(after[step][0, : at + 1], before[step][0, : at + 1])
        changed[0, at + 1 + step] = (changed[0, at + 1 + step] + 1) % VOCAB_SIZE
        found = packed(head, features, changed, embed)[step][0, at]
        assert not torch.allclose(found, before[step][0, at]), "it does read the token before"


@each_kind
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_the_loss_is_the_sum_over_counted_tokens(
    states: VerifierStates, kind: str, loss: Any
) -> None:
    """One token after another, each by ordinary attention over its own rows."""
    one = objective(states, kind, loss, decay=0.5)
    head, verifier = head_of(one), states.verifier
    shake(head)
    drawn = one.batch(0, 1)
    chosen = torch.rand(drawn.counted.shape, generator=torch.Generator().manual_seed(6)) < 0.67
    batch = replace(drawn, counted=chosen)
    ids, total = batch.token_ids[0], torch.zeros(())
    own = verifier.model(ids[None]).logits[0].log_softmax(-1)
    for t in range(len(ids)):
        for step in range(min(STEPS, len(ids) - t - 2)):
            target = t + 2 + step
            if chosen[0, target]:
                logits = distribution(head, verifier.model, ids[:target].tolist(), t + 2)
                score = loss(logits[None], ids[target][None], own[target - 1][None])
                total = total + 0.5**step * score.sum()
    with torch.no_grad():
        found = one.loss(one.module, batch)
    torch.testing.assert_close(found, total.detach(), rtol=1e-4, atol=1e-3)


@each_kind
def test_chunks_change_nothing(
    states: VerifierStates, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = objective(states, kind, KL())
    shake(one.module)

    def gradients() -> dict[str, Tensor]:
        one.module.zero_grad()
        one.loss(one.module, one.batch(0, 2)).backward()
        return {n: w.grad.clone() for n, w in one.module.named_parameters() if w.grad is not None}

    whole = gradients()
    assert whole.keys() == dict(one.module.named_parameters()).keys()
    monkeypatch.setattr(head_losses, "LOGITS_AT_ONCE", 5 * STEPS * head_of(one).vocab_size)
    torch.testing.assert_close(gradients(), whole, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["eagle3", "eagle1"])
def test_any_kind_is_trained_saved_loaded_and_drafts(kind: str) -> None:
    check_heads(EagleTraining, **KINDS[kind])


def test_states_of_several_layers_are_kept_on_disk(
    verifier: HFCausalLM, tmp_path: Path, tiny: Any
) -> None:
    given = (verifier, str(tiny.text), str(tiny.text), 24)
    cached = VerifierStates(*given, cache_path=str(tmp_path / "states"))
    one, two = (objective(each, "eagle3", KL()) for each in (cached, VerifierStates(*given)))
    for _ in range(2):
        batch = one.batch(0, 2)
        torch.testing.assert_close(one.states.hidden(batch), two.states.hidden(two.batch(0, 2)))
    assert one.batch(0, 2).hidden is not None
    with pytest.raises(UserError, match="holds the states of something else"):
        objective(VerifierStates(*given, cache_path=str(tmp_path / "states")), "eagle1", KL())


def learnt(
    verifier: HFCausalLM, states: VerifierStates, folder: Path, shift: int, **options: Any
) -> tuple[list[int], list[int]]:
    """Learn the verifier's own greedy text by heart, each label `shift` tokens late; save it."""
    prompt, written = greedy(verifier)
    token_ids = torch.tensor([[*prompt, *written]])
    text = Batch(token_ids, torch.arange(token_ids.shape[1])[None] >= len(prompt))
    one = objective(states, "eagle3", CrossEntropy(), decay=1.0, **options)
    known = replace(text, hidden=one.states.hidden(text))
    one.states.batch = lambda first, count: known  # pyright: ignore[reportAttributeAccessIssue]
    one.states._prepared = replace(one.states._data, held_out=known)
    if shift:
        head: Any = head_of(one)
        forced = head.forced
        shifted = torch.cat([token_ids[:, shift:], token_ids[:, -shift:]], dim=1)

        def misread(features: Tensor, _: Tensor, *given: Any) -> list[Tensor]:
            return forced(features, shifted, *given)

        head.forced = misread
    trainer = Trainer(max_steps=150, learning_rate=1e-2, warmup_steps=5, weight_decay=0.0)
    trainer.fit(one, folder)
    return list(prompt), written


@pytest.mark.parametrize("depth", [STEPS, STEPS + 2])
def test_what_was_learnt_by_heart_is_accepted(
    verifier: HFCausalLM, states: VerifierStates, tmp_path: Path, depth: int
) -> None:
    """Every step emits depth + 1 tokens; deeper than it was trained, too, if less surely."""
    prompt, written = learnt(verifier, states, tmp_path / "head", shift=0)
    proposer = Eagle.load(str(tmp_path / "head"), verifier, Chain(depth))
    decoder = SpeculativeDecoder(verifier, proposer, Rejection(), Sampling(0), Stopping(40))
    (drafted,) = decoder.decode([Request("a", prompt)])
    assert list(drafted.output_ids) == written
    if depth == STEPS:
        assert all(step.accepted == step.drafted for step in drafted.steps)
        assert drafted.steps[0].emitted == depth + 1


def test_what_was_learnt_a_token_late_is_not(
    verifier: HFCausalLM, states: VerifierStates, tmp_path: Path
) -> None:
    """The control: a head whose labels are those of the next place learns, and is no use."""
    prompt, written = learnt(verifier, states, tmp_path / "head", shift=1)
    proposer = Eagle.load(str(tmp_path / "head"), verifier, Chain(STEPS))
    decoder = SpeculativeDecoder(verifier, proposer, Rejection(), Sampling(0), Stopping(40))
    (drafted,) = decoder.decode([Request("a", prompt)])
    assert list(drafted.output_ids) == written
    assert sum(step.accepted for step in drafted.steps) < sum(s.drafted for s in drafted.steps) / 2


def test_the_closed_form_looks_as_deep_as_the_tree(
    verifier: HFCausalLM, states: VerifierStates
) -> None:
    one = objective(states, "eagle3", CrossEntropy(), steps=1)
    held_out = HeldOut(Chain(4), Sampling(0.0))
    proposer = Eagle(head_of(one), verifier, Chain(4))
    found = held_out.measure(verifier, proposer, head_of(one), one.states.held_out)
    assert 1 <= found["eval_block_efficiency"] <= 5


def test_a_head_of_other_layers_is_refused(
    verifier: HFCausalLM, states: VerifierStates, tmp_path: Path
) -> None:
    """What it reads is part of what was saved, and vouched for."""
    one = objective(states, "eagle3", CrossEntropy())
    Trainer(max_steps=1, warmup_steps=0).fit(one, tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    assert config["reads"] == [0, "final"]
    file.write_text(json.dumps({**config, "reads": ["final"]}))
    with pytest.raises(UserError, match=r"^path="):
        Eagle.load(str(tmp_path), verifier, Chain(2))


def test_a_layer_that_is_not_there_is_refused_before_training(states: VerifierStates) -> None:
    with pytest.raises(UserError, match=r"reads=\[7\]: expected numbers from 0 to 0, or final"):
        objective(states, "eagle1", CrossEntropy(), reads=[7])

"""The expected accepted length as a loss, against sums over all ways to cut a text into steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.core.errors import Unfit, UserError
from specdec.core.sampling import Sampling
from specdec.heads.base import Heads
from specdec.heads.forcing import HeadTargets
from specdec.training import head_losses
from specdec.training.acceptance import Acceptance
from specdec.training.chained import ChainedTraining
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.draft_model import DraftModelTraining
from specdec.training.head_losses import HeadLosses
from specdec.training.heads import HeadTraining
from specdec.training.loss.cross_entropy import CrossEntropy
from specdec.training.loss.expected_accepted import ExpectedAccepted
from specdec.training.loss.total_variation import TotalVariation
from specdec.training.medusa import MedusaTraining
from specdec.training.objective import Batch
from specdec.training.starts import start_probabilities
from specdec.training.trainer import Trainer
from specdec.tree.chain import Chain
from tests.support.building import prepared

K = 3
KINDS: dict[str, tuple[Callable[..., HeadTraining], dict[str, Any]]] = {
    "medusa": (MedusaTraining, {}),
    "medusa markov": (MedusaTraining, {"correction": "markov", "rank": 3}),
    "chained": (
        ChainedTraining,
        {"link": "both", "prefix_attention": True, "num_attention_heads": 4},
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def objective(states: VerifierStates, kind: str, loss: Any, **more: Any) -> HeadTraining:
    """Heads that have opinions: fresh ones' first guess is the verifier's own next token."""
    cls, options = KINDS[kind]
    acceptance = Acceptance(Chain(K), Sampling(0), num_prompts=2, max_new_tokens=12)
    one = prepared(cls(states, loss, acceptance, num_heads=K, **options, **more))
    generator = torch.Generator().manual_seed(5)
    for weight in one.module.parameters():
        weight.data.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return one


def answers(batch: Batch) -> Batch:
    """Count three answers in the first text, up to its end, and two in the next."""
    counted = torch.zeros_like(batch.counted)
    length = counted.shape[1]
    for row, first, end in ((0, 4, 9), (0, 10, 12), (0, length - 7, length), (1, 0, 8), (1, 9, 10)):
        counted[row, first:end] = True
    return Batch(batch.token_ids, counted)


def runs(counted: Tensor) -> list[range]:  # [T]
    """Find the answers of a text, without the two tokens that no head speaks about."""
    found: list[range] = []
    for place in range(2, len(counted)):
        if counted[place]:
            goes_on = bool(found) and found[-1].stop == place
            first = found.pop().start if goes_on else place
            found.append(range(first, place + 1))
    return found


def ratios(
    one: HeadTraining, ids: Tensor, first: int, end: int, temperature: float
) -> list[Tensor]:
    """List w of the K tokens (before `end`) that a step would draft from token `first` on."""
    assert isinstance(one.module, HeadLosses)
    heads, verifier = one.module.heads, one.states.verifier
    assert isinstance(heads, Heads)
    hidden = verifier.model.base_model(ids[None]).last_hidden_state[0]
    own = verifier.model(ids[None]).logits[0]
    read = hidden if heads.prefix is None else heads.prefix(hidden[None])[0]
    state = root = read[first - 2]
    found: list[Tensor] = []
    for head, target in enumerate(range(first, min(first + K, end))):
        state = heads.step(head, root, verifier.embed(ids[first - 1 : target]), state)
        logits = heads.logits(head, state, ids[target - 1], verifier.unembed)
        if temperature == 0:
            found.append(logits.softmax(-1)[ids[target]])
            continue
        q = (logits / temperature).softmax(-1)[ids[target]]
        p = (own[target - 1] / temperature).softmax(-1)[ids[target]]
        found.append(torch.minimum(q / p, torch.ones(())))
    return found


def paths(run: range, survival: dict[int, list[float]]) -> dict[int, float]:
    """Add up the probability of every way to cut a run into steps, wherever its steps begin."""
    starts = dict.fromkeys(run, 0.0)

    def visit(place: int, probability: float) -> None:
        if place not in starts:
            return
        starts[place] += probability
        alive = [1.0, *survival[place], 0.0]
        for accepted in range(len(alive) - 1):
            visit(place + accepted + 1, probability * (alive[accepted] - alive[accepted + 1]))

    visit(run.start, 1.0)
    return starts


def by_hand(one: HeadTraining, batch: Batch, temperature: float, step_starts: bool) -> Tensor:
    """-sum_s r(s) sum_k prod w, with the mean of r made 1."""
    lengths: list[Tensor] = []
    weights: list[float] = []
    for ids, counted in zip(batch.token_ids, batch.counted, strict=True):
        for run in runs(counted):
            drafted = {s: ratios(one, ids, s, run.stop, temperature) for s in run}
            alive = {s: torch.stack(w).cumprod(0) for s, w in drafted.items()}
            starts = paths(run, {s: found.tolist() for s, found in alive.items()})
            lengths += [alive[s].sum() for s in run]
            weights += [starts[s] if step_starts else 1.0 for s in run]
    r = torch.tensor(weights)
    return -(torch.stack(lengths) * r / r.mean()).sum()


def gradients(one: HeadTraining, total: Tensor) -> dict[str, Tensor]:
    one.module.zero_grad()
    total.backward()
    found = {name: weight.grad for name, weight in one.module.named_parameters()}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


@each_kind
@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("step_starts", [True, False])
@pytest.mark.parametrize("size", [None, 4])
def test_the_loss_and_its_gradients_are_those_of_the_formula(
    states: VerifierStates,
    kind: str,
    temperature: float,
    step_starts: bool,
    size: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the chunks, and whatever is counted."""
    one = objective(states, kind, ExpectedAccepted(temperature, step_starts))
    if size is not None:
        vocab_size = states.verifier.vocab_size
        monkeypatch.setattr(head_losses, "LOGITS_AT_ONCE", size * K * vocab_size)
    batch = answers(one.batch(0, 2))
    direct = by_hand(one, batch, temperature, step_starts)
    expected = gradients(one, direct)
    total = one.loss(one.module, batch)
    torch.testing.assert_close(total.detach(), direct.detach(), rtol=1e-4, atol=1e-5)
    found = gradients(one, total)
    assert found.keys() == expected.keys() == dict(one.module.named_parameters()).keys()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_at_temperature_0_the_ratio_is_the_draft_s_own_probability() -> None:
    logits, ids = torch.randn(5, 7), torch.arange(5)
    loss = ExpectedAccepted(temperature=0)
    assert not loss.uses_verifier
    q = logits.softmax(-1)[torch.arange(5), ids]
    torch.testing.assert_close((-loss(logits, ids, None)).exp(), q)
    sure = torch.full((5, 7), -torch.inf).scatter(1, ids[:, None], 0.0)
    torch.testing.assert_close((-ExpectedAccepted()(logits, ids, sure)).exp(), q)


def test_the_first_depth_is_the_overlap_on_average() -> None:
    """sum_x p(x) min(1, q(x) / p(x)) = sum_x min(p, q): what LK and total variation are made of."""
    logits, log_p = torch.randn(1, 7), torch.randn(1, 7).log_softmax(-1)
    ids = torch.arange(7)
    each = -(-ExpectedAccepted()(logits.expand(7, -1), ids, log_p.expand(7, -1))).exp()
    distance = TotalVariation()(logits, ids[:1], log_p)
    torch.testing.assert_close((log_p.exp()[0] * each).sum(), distance[0] - 1)


def test_steps_begin_everywhere_if_nothing_is_accepted_and_seldom_if_all_is() -> None:
    positions = torch.tensor([3, 4, 5, 6, 7, 8, 20, 21])
    ends = [6, 5, 4, 3, 2, 1, 2, 1]  # how many tokens of its run are left
    wanted = torch.tensor([[depth < left for depth in range(2)] for left in ends])
    none = start_probabilities(positions, wanted, torch.zeros(8, 2))
    assert none.tolist() == [1.0] * 8
    all_of_them = start_probabilities(positions, wanted, wanted.float())
    assert all_of_them.tolist() == [1, 0, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("step_starts", [True, False])
def test_nothing_counted_is_no_loss(states: VerifierStates, step_starts: bool) -> None:
    one = objective(states, "medusa", ExpectedAccepted(step_starts=step_starts))
    batch = one.batch(0, 1)
    counted = torch.zeros_like(batch.counted)
    counted[0, :2] = True  # of which no head speaks
    for chosen in (torch.zeros_like(counted), counted):
        total = one.loss(one.module, Batch(batch.token_ids, chosen))
        total.backward()
        assert total == 0


@pytest.mark.parametrize(("temperature", "warm_steps"), [(1.0, 0), (0.0, 20)])
def test_a_text_learnt_by_heart_is_accepted_at_length(
    states: VerifierStates,
    tmp_path: Path,
    temperature: float,
    warm_steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At temperature 0 from heads that have an idea of it: the gradient vanishes where q does."""
    one = objective(states, "chained", ExpectedAccepted(temperature))
    text = one.batch(0, 2)
    monkeypatch.setattr(states, "batch", lambda first, count: text)
    num_steps = HeadTargets.of(text.token_ids, text.counted, K).wanted[:, 0].sum()

    def accepted() -> float:  # a step, on average over where steps begin
        with torch.no_grad():
            return float(-one.loss(one.module, text) / num_steps)

    if warm_steps:
        warm = objective(states, "chained", CrossEntropy(), decay=1.0)
        first = Trainer(max_steps=warm_steps, learning_rate=3e-3, warmup_steps=5)
        first.fit(warm, tmp_path / "warm")
        one.module.load_state_dict(warm.module.state_dict())
    before = accepted()
    trainer = Trainer(max_steps=60, learning_rate=3e-3, warmup_steps=5, weight_decay=0.0)
    trainer.fit(one, tmp_path / "heads")
    assert accepted() > before + 0.5


def test_a_share_of_the_positions_is_refused_where_all_are_needed(states: VerifierStates) -> None:
    with pytest.raises(UserError, match=r"^share=0\.5: expected 1 with loss=Expected"):
        objective(states, "medusa", ExpectedAccepted(), share=0.5)
    batch = states.batch(0, 2)
    whole = objective(states, "medusa", ExpectedAccepted(step_starts=False))
    part = objective(states, "medusa", ExpectedAccepted(step_starts=False), share=0.3)
    torch.manual_seed(0)
    with torch.no_grad():
        found = torch.stack([part.loss(part.module, batch) for _ in range(200)])
        expected = whole.loss(whole.module, batch)
    assert abs(found.mean() - expected) < 4 * found.std() / 200**0.5


def test_a_draft_model_is_not_trained_on_steps(states: VerifierStates) -> None:
    acceptance = Acceptance(Chain(K), Sampling(0))
    with pytest.raises(Unfit, match=r"^loss=ExpectedAccepted: .*draft_model$"):
        DraftModelTraining(states, ExpectedAccepted(), acceptance)


def test_bad_options_are_named() -> None:
    with pytest.raises(UserError, match=r"^temperature=-1"):
        ExpectedAccepted(temperature=-1)
    bad: Any = "yes"
    with pytest.raises(UserError, match=r"^step_starts='yes'"):
        ExpectedAccepted(step_starts=bad)

"""Block heads: rows in training are those of decoding, and what was learnt is accepted."""

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
from specdec.heads.block import BlockHead
from specdec.lm import mask
from specdec.lm.hf import HFCausalLM
from specdec.lm.layer import CachedLayer
from specdec.proposer.block import BlockDraft
from specdec.testing import check_heads
from specdec.training import head_losses
from specdec.training.acceptance import Acceptance
from specdec.training.block import BlockTraining
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.expected_acceptance import HeldOut
from specdec.training.head_losses import HeadLosses
from specdec.training.loss.cross_entropy import CrossEntropy
from specdec.training.loss.kl import KL
from specdec.training.objective import Batch
from specdec.training.position_subset import random_places
from specdec.training.trainer import Trainer
from specdec.tree.chain import Chain
from specdec.verification.rejection import Rejection
from tests.proposer.test_block_draft import distributions
from tests.support.every_loss import LOSSES, greedy

DEPTH = 3
KINDS: dict[str, dict[str, Any]] = {
    "dflash": {"mask": "bidirectional", "labels": "in_place", "correction": "none"},
    "jetspec": {"labels": "in_place", "correction": "none"},
    "dspark": {"mask": "bidirectional", "rank": 4},
    "default": {"rank": 4, "reads": ["final"]},
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_mask = pytest.mark.parametrize("mask", ["causal", "bidirectional"])
WIDTH, VOCAB_SIZE, LENGTH = 16, 23, 24


def objective(states: VerifierStates, kind: str, loss: Any, **more: Any) -> BlockTraining:
    acceptance = Acceptance(Chain(DEPTH), Sampling(0), num_prompts=2, max_new_tokens=12)
    found = BlockTraining(states, loss, acceptance, **{"num_heads": DEPTH, **KINDS[kind], **more})
    found.prepare()
    return found


def head_of(one: BlockTraining) -> BlockHead:
    assert isinstance(one.module, HeadLosses)
    assert isinstance(one.module.heads, BlockHead)
    return one.module.heads


def shake(module: torch.nn.Module, amount: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(5)
    for weight in module.parameters():
        weight.data.add_(amount * torch.randn(weight.shape, generator=generator).to(weight.dtype))


def small_head(kind: str) -> BlockHead:
    options = {"num_layers": 2, **KINDS[kind], "reads": [0, 2, "final"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        heads: Any = {"num_attention_heads": 4, "num_key_value_heads": 2}
        head = BlockHead(WIDTH, VOCAB_SIZE, DEPTH, **options, **heads).double()
    shake(head)
    return head


def some_texts(head: BlockHead) -> tuple[Tensor, Tensor, torch.nn.Embedding]:
    torch.manual_seed(2)
    embed = torch.nn.Embedding(VOCAB_SIZE, WIDTH).double()
    token_ids = torch.randint(VOCAB_SIZE, (2, LENGTH))
    features = torch.randn(2, LENGTH, head.feature_size, dtype=torch.float64)
    return features, token_ids, embed


@torch.no_grad()
def packed(
    head: BlockHead,
    given: tuple[Tensor, Tensor, Any],
    positions: Tensor,
    depth: int = DEPTH,
) -> Tensor:  # [n, D, H]
    """The rows of blocks behind these places of flattened texts, as training computes them."""
    features, token_ids, embed = given
    behind = torch.nn.functional.pad(token_ids, (0, depth + 1))[:, 1:]
    following = behind.unfold(1, depth + 1, 1).flatten(0, 1)[positions]
    return torch.stack(head.forced(features, token_ids, positions, following, embed), dim=1)


@each_kind
@torch.no_grad()
def test_training_rows_are_those_of_decoding(kind: str) -> None:
    """In float64, behind random places, some of them twice, and of texts that grow in pieces.

    The cache is that of decoding: ragged rows, accepted blocks of any length, and blocks of which
    nothing is kept.
    """
    head, noise = small_head(kind), torch.Generator().manual_seed(3)
    features, token_ids, embed = given = some_texts(head)
    places = torch.randint(LENGTH - DEPTH - 1, (40,), generator=noise)
    positions = torch.cat([places, places + LENGTH, places[:9]])
    rows = packed(head, given, positions[torch.randperm(len(positions), generator=noise)])
    assert len(rows) == 89
    cells, known, num_checked = CachedLayer(head.remembered, num_layers=2), [0, 0], 0
    cells.open(2, 8)  # which has to grow
    while max(known) + 4 + DEPTH < LENGTH:
        ends = [start + int(torch.randint(1, 5, (), generator=noise)) for start in known]
        new = [features[row, a:b] for row, (a, b) in enumerate(zip(known, ends, strict=True))]
        cells.append([0, 1], new)
        roots = embed(torch.stack([token_ids[row, end] for row, end in enumerate(ends)]))
        block = head.slots(roots, DEPTH)
        seen = mask.causal(ends, block.shape[1], block.device)
        if not head.is_causal:
            seen = seen[:, -1:].expand(-1, block.shape[1], -1)
        found = head.rows(cells.extend([0, 1], block, attend=seen, layer=head.drafted), DEPTH)
        # Beside what else is packed: another block of the same place, and its neighbours.
        at = torch.tensor([end - 1 + LENGTH * row for row, end in enumerate(ends)])
        among = torch.cat([positions, at, at])
        expected = packed(head, given, among)
        for copy in (expected[-4:-2], expected[-2:]):
            torch.testing.assert_close(found, copy, rtol=0, atol=1e-12)
        num_checked += 2
        for row, end in enumerate(ends):
            cells.truncate(row, end)
        known = ends
    assert num_checked >= 8


@each_kind
def test_a_row_knows_nothing_of_what_it_predicts(kind: str) -> None:
    """Nor of states behind its place, of another text, or of the blocks that are packed with it."""
    head, at = small_head(kind), 5
    features, token_ids, embed = given = some_texts(head)
    places = torch.tensor([at, at + 1, at + LENGTH, at, at - 2])
    before = packed(head, given, places)[0]
    changed, others = token_ids.clone(), features.clone()
    changed[0, at + 2 :] = (changed[0, at + 2 :] + 1) % VOCAB_SIZE  # all behind the last token
    changed[1] = (changed[1] + 1) % VOCAB_SIZE
    others[0, at + 1 :] += 1
    others[1] += 1
    assert torch.equal(packed(head, (others, changed, embed), places)[0], before)
    torch.testing.assert_close(packed(head, given, places[:1])[0], before, rtol=0, atol=1e-12)
    changed[0, at + 1] = (changed[0, at + 1] + 1) % VOCAB_SIZE
    others[0, at] += 1
    for read in ((features, changed, embed), (others, token_ids, embed)):
        found = packed(head, read, places)[0]
        assert not torch.isclose(found, before).all(dim=-1).any(), "rows read what is known"


@pytest.mark.parametrize("labels", ["shifted", "in_place"])
@each_mask
def test_a_causal_row_does_not_depend_on_how_many_follow(mask: str, labels: str) -> None:
    """And one that sees its whole block does: that is as long as in training, whoever asks."""
    kind: Any = {"mask": mask, "labels": labels, "correction": "none"}
    torch.manual_seed(1)
    long = BlockHead(WIDTH, VOCAB_SIZE, 5, reads=[0, "final"], **kind).double()
    shake(long)
    short = BlockHead(WIDTH, VOCAB_SIZE, 2, reads=[0, "final"], **kind).double()
    short.load_state_dict(long.state_dict())
    given, places = some_texts(long), torch.tensor([3, 9])
    rows, first = (packed(long, given, places, depth) for depth in (5, 2))
    torch.testing.assert_close(first, rows[:, :2], rtol=0, atol=1e-12)
    of_short = packed(short, given, places, 2)
    if mask == "causal":
        torch.testing.assert_close(of_short, first, rtol=0, atol=1e-12)
    else:
        assert ((of_short - first).abs().amax(dim=-1) > 1e-3).all()


@each_kind
def test_parts_of_the_places_are_read_alike(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no gradient is wanted, the scores of all places need not be there at once."""
    head, places = small_head(kind), torch.tensor([3, 9, 9, LENGTH + 2, 4, LENGTH + 7, 0])
    given = some_texts(head)
    whole = packed(head, given, places)
    monkeypatch.setattr("specdec.heads.block.SCORES_AT_ONCE", 2 * DEPTH * LENGTH * 4)
    torch.testing.assert_close(packed(head, given, places), whole, rtol=0, atol=1e-12)


@each_kind
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_the_loss_is_the_sum_over_counted_tokens(
    states: VerifierStates, kind: str, loss: Any
) -> None:
    """One token after another, each from a plain forward of its block."""
    one = objective(states, kind, loss, decay=0.5)
    head, verifier = head_of(one), states.verifier
    shake(head)
    drawn = one.batch(0, 1)
    chosen = torch.rand(drawn.counted.shape, generator=torch.Generator().manual_seed(6)) < 0.67
    batch = replace(drawn, counted=chosen)
    ids, total = batch.token_ids[0], torch.zeros(())
    own = verifier.model(ids[None]).logits[0].log_softmax(-1)
    for t in range(len(ids)):
        for depth in range(min(DEPTH, len(ids) - t - 2)):
            target = t + 2 + depth
            if chosen[0, target]:
                text = ids[:target].tolist()
                logits = distributions(head, verifier.model, text, t + 2)
                score = loss(logits[None], ids[target][None], own[target - 1][None])
                total = total + 0.5**depth * score.sum()
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
    monkeypatch.setattr(head_losses, "LOGITS_AT_ONCE", 5 * DEPTH * head_of(one).vocab_size)
    torch.testing.assert_close(gradients(), whole, rtol=1e-3, atol=1e-3)


def test_blocks_begin_anywhere_and_weigh_as_all_do() -> None:
    """In each batch other places, in order and once each."""
    torch.manual_seed(0)
    drawn = [random_places(40, 0.25, torch.device("cpu")) for _ in range(400)]
    counts = torch.stack([places for places, _ in drawn]).flatten().bincount(minlength=40)
    assert all(factor == 4 for _, factor in drawn)
    assert all(bool((places.diff() > 0).all()) for places, _ in drawn)
    assert any(bool((places.diff() > 1).any()) for places, _ in drawn)
    expected = 400 * 0.25
    assert float(((counts - expected) ** 2 / expected / 0.75).sum()) < 70  # chi-square of 39: 0.2 %
    whole, factor = random_places(40, 1.0, torch.device("cpu"))
    assert (whole.tolist(), factor) == ([*range(40)], 1.0)


def test_a_share_of_the_blocks_has_the_gradient_of_all_on_average(states: VerifierStates) -> None:
    one, part = (objective(states, "default", KL(), share=share) for share in (1.0, 0.25))
    batch = one.batch(0, 2)
    with torch.no_grad():
        whole = one.loss(one.module, batch)
        torch.manual_seed(3)
        some = torch.stack([part.loss(one_of(part, one), batch) for _ in range(60)])
    assert some.std() > 0
    assert abs(some.mean() - whole) < 4 * some.std() / 60**0.5


def one_of(part: BlockTraining, other: BlockTraining) -> torch.nn.Module:
    """The losses of one training with the weights of another."""
    part.module.load_state_dict(other.module.state_dict())
    return part.module


@pytest.mark.parametrize("kind", ["dflash", "default"])
def test_any_kind_is_trained_saved_loaded_and_drafts(kind: str) -> None:
    check_heads(BlockTraining, **KINDS[kind])


def learnt(
    verifier: HFCausalLM, states: VerifierStates, folder: Path, kind: str, is_late: bool
) -> tuple[list[int], list[int]]:
    """Learn the verifier's own greedy text by heart, or each label a token late; save it."""
    prompt, written = greedy(verifier)
    token_ids = torch.tensor([[*prompt, *written]])
    text = Batch(token_ids, torch.arange(token_ids.shape[1])[None] >= len(prompt))
    one = objective(states, kind, CrossEntropy(), decay=1.0)
    known = replace(text, hidden=one.states.hidden(text))
    one.states.batch = lambda first, count: known  # pyright: ignore[reportAttributeAccessIssue]
    one.states._prepared = replace(one.states._data, held_out=known)
    if is_late:
        forced = head_of(one).forced

        def misread(
            features: Tensor,
            token_ids: Tensor,
            positions: Tensor,
            following_ids: Tensor,
            embed: Any,
        ) -> list[Tensor]:
            roots = token_ids.flatten()[positions, None]
            earlier = torch.cat([roots, following_ids[:, :-1]], dim=1)
            return forced(features, token_ids, (positions - 1).clamp(min=0), earlier, embed)

        head_of(one).forced = misread
    trainer = Trainer(max_steps=150, learning_rate=1e-2, warmup_steps=5, weight_decay=0.0)
    trainer.fit(one, folder)
    return list(prompt), written


def drafted(verifier: HFCausalLM, folder: Path, prompt: list[int]) -> Any:
    proposer = BlockDraft.load(str(folder), verifier, Chain(DEPTH))
    decoder = SpeculativeDecoder(verifier, proposer, Rejection(), Sampling(0), Stopping(40))
    (trace,) = decoder.decode([Request("a", prompt)])
    return trace


@each_kind
def test_what_was_learnt_by_heart_is_accepted(
    verifier: HFCausalLM, states: VerifierStates, tmp_path: Path, kind: str
) -> None:
    """Every step emits depth + 1 tokens."""
    prompt, written = learnt(verifier, states, tmp_path / "head", kind, is_late=False)
    trace = drafted(verifier, tmp_path / "head", prompt)
    assert list(trace.output_ids) == written
    assert all(step.accepted == step.drafted for step in trace.steps)
    assert trace.steps[0].emitted == DEPTH + 1


@pytest.mark.parametrize("kind", ["dflash", "jetspec"])
def test_what_was_learnt_a_token_late_is_not(
    verifier: HFCausalLM, states: VerifierStates, tmp_path: Path, kind: str
) -> None:
    """The control: a head that learnt to speak of the token after next is no use.

    A correction, which is told the token before, would have learnt some of the text all the same.
    """
    prompt, written = learnt(verifier, states, tmp_path / "head", kind, is_late=True)
    trace = drafted(verifier, tmp_path / "head", prompt)
    assert list(trace.output_ids) == written
    assert sum(step.accepted for step in trace.steps) < sum(s.drafted for s in trace.steps) / 2


@each_mask
def test_the_closed_form_looks_as_deep_as_the_tree(
    verifier: HFCausalLM, states: VerifierStates, mask: str
) -> None:
    one = objective(states, "default", CrossEntropy(), mask=mask)
    held_out = HeldOut(Chain(2), Sampling(0.0))
    proposer = BlockDraft(head_of(one), verifier, Chain(2))
    found = held_out.measure(verifier, proposer, head_of(one), one.states.held_out)
    assert 1 <= found["eval_block_efficiency"] <= 3


def test_what_cannot_be_drafted_is_refused_before_training(states: VerifierStates) -> None:
    with pytest.raises(UserError, match=r"reads=\[7\]: expected numbers from 0 to 0, or final"):
        objective(states, "default", CrossEntropy(), reads=[7])
    with pytest.raises(UserError, match="tree: 3 levels, but there are 2 heads"):
        objective(states, "default", CrossEntropy(), num_heads=2)

"""What is learned, from what, and that it is the same whenever and wherever it is learned."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from specdec.core.errors import Unfit, UserError
from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.core.trace import Step, Trace
from specdec.core.values import FINAL, Context, Layer
from specdec.lm.hf import HFCausalLM
from specdec.metrics import summarize
from specdec.online.distil import OnlineDistillation
from specdec.online.learner import Distiller
from specdec.online.state import read_state, write_state
from specdec.online.texts import Texts
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.ngram import NGram
from specdec.training.loss.expected_accepted import ExpectedAccepted
from specdec.tree.chain import Chain
from tests.online.learning import (
    BESIDE,
    decoder,
    draft_model,
    heads,
    model,
    proposers,
    requests,
    taught,
    verifier,
)
from tests.support.families import noisy_copy, random_ids

SIZE = 40
PROMPT = random_ids(6, 1, SIZE)


def timeless(traces: list[Trace]) -> list[Trace]:
    """Leave the seconds out."""

    def without(step: Step) -> Step:
        return replace(
            step, propose_seconds=0.0, verify_seconds=0.0, other_seconds=0.0, learn_seconds=0.0
        )

    return [
        replace(trace, prefill_seconds=0.0, steps=tuple(map(without, trace.steps)))
        for trace in traces
    ]


def run(learner: Distiller, proposer: Any, of: HFCausalLM, prompts: range, batch: int = 1):
    wanted = [each for each in requests(prompts.stop, PROMPT)][prompts.start :]
    return decoder(of, proposer, learner, 1.0, 16, batch).decode(wanted)


@pytest.mark.thorough
def test_more_is_accepted_after_a_while() -> None:
    of, proposer = verifier(SIZE), draft_model(SIZE)
    learner = taught(proposer, of, learning_rate=5e-3, samples=8, length=32)
    traces = run(learner, proposer, of, range(32))
    first, last = (mean_expected(some) for some in (traces[:8], traces[-8:]))
    assert last > 1.3 * first


def mean_expected(traces: Sequence[Trace]) -> float:
    """Average what was to be accepted over steps: tau itself is noisier."""
    found = [step.expected_accepted for trace in traces for step in trace.steps if step.drafted]
    known = [each for each in found if each is not None]
    assert len(known) == len(found) > 0
    return sum(known) / len(known)


@pytest.mark.parametrize("name", ["draft_model", "medusa", "chained"])
def test_the_loss_falls(name: str) -> None:
    of = verifier(SIZE)
    proposer = proposers(of)[name]
    learner = taught(proposer, of, learning_rate=5e-3, samples=4, length=32)
    untaught = copy.deepcopy(learner._student)
    run(learner, proposer, of, range(8))
    batch = learner._texts.sample(4, 64, RandomStream(1))
    assert batch is not None
    with torch.no_grad():
        assert learner._student.loss(*batch) < 0.8 * untaught.loss(*batch)


@pytest.mark.parametrize("options", [{}, BESIDE, {**BESIDE, "swap": "request"}])
def test_a_run_of_two_sessions_is_the_run_of_one(tmp_path: Any, options: dict[str, Any]) -> None:
    of = verifier(SIZE)
    proposer = draft_model(SIZE)
    whole = run(taught(proposer, of, **options), proposer, of, range(6), batch=2)

    proposer = draft_model(SIZE)
    learner = taught(proposer, of, **options)
    before = run(learner, proposer, of, range(4), batch=2)
    write_state(tmp_path / "learner.pt", learner.state(), "run", [("0", 0), ("1", 0)])
    kept = read_state(tmp_path / "learner.pt")
    assert kept.prompts == (("0", 0), ("1", 0))

    proposer = draft_model(SIZE)
    learner = taught(proposer, of, **options)
    learner.restore(kept.learner)
    after = run(learner, proposer, of, range(4, 6), batch=2)
    # Both sessions begin with empty rows, as the goes of a command do; the first has four texts.
    one = draft_model(SIZE)
    again = taught(one, of, **options)
    assert timeless(before) == timeless(run(again, one, of, range(4), batch=2))
    assert timeless(after) == timeless(run(again, one, of, range(4, 6), batch=2))
    assert timeless(before)[:2] == timeless(whole)[:2]


def test_what_was_loaded_stays_as_it_was() -> None:
    """Models are shared by all that load them."""
    of = verifier(SIZE)
    loaded = HFCausalLM(noisy_copy(model(SIZE), amount=1.0))
    before = [weight.clone() for weight in loaded.model.parameters()]
    proposer = DraftModel(loaded, Chain(2))
    run(taught(proposer, of), proposer, of, range(3))
    assert proposer.model is not loaded
    after = list(loaded.model.parameters())
    assert all(map(torch.equal, before, after))
    own = heads("chained", of)
    given = own.heads
    before = [weight.clone() for weight in given.parameters()]
    run(taught(own, of), own, of, range(3))
    assert all(map(torch.equal, before, given.parameters()))


def test_weights_of_fewer_bits_learn_in_many() -> None:
    """Steps that bfloat16 would round away add up in the copy."""
    of = verifier(SIZE)
    rough: Any = noisy_copy(model(SIZE), amount=1.0)
    proposer = DraftModel(HFCausalLM(rough.to(torch.bfloat16)), Chain(2))
    learner = taught(proposer, of, learning_rate=1e-5)
    run(learner, proposer, of, range(3))
    assert {weight.dtype for weight in learner._student.trained.parameters()} == {torch.float32}
    assert {weight.dtype for weight in learner._student.drafting.parameters()} == {torch.bfloat16}


# --- texts ----------------------------------------------------------------------------------------


def context(row: int, token_ids: list[int], start: int, stop: int, prompt: int = 3) -> Context:
    """The state of token t of a row is (row, t)."""
    states = torch.tensor([[float(row), float(t)] for t in range(start, stop)]).view(-1, 2)
    stream = RandomStream(0)
    features: dict[Layer, torch.Tensor] = {FINAL: states}
    return Context(row, str(row), token_ids, prompt, Sampling(), 9, stream, stream, features)


def test_states_stay_with_their_tokens() -> None:
    texts = Texts(10**6, prompts=False)
    texts.begin(context(0, [10, 11, 12], 0, 2))
    texts.begin(context(1, [20, 21, 22], 0, 2))
    texts.grow(context(0, [10, 11, 12, 13, 14], 2, 4))
    texts.grow(context(1, [20, 21, 22, 23], 2, 5))  # it ended within a step: two states too many
    for number in range(50):
        batch = texts.sample(2, 4, RandomStream(number))
        assert batch is not None
        for hidden, token_ids, counted in zip(*batch, strict=True):
            for place in range(len(token_ids)):
                token = int(token_ids[place])
                if counted[place]:
                    row, number_of = divmod(token - 10, 10)
                    assert number_of >= 3, "a token of the prompt"
                    assert hidden[place - 1].tolist() == [row, number_of - 1]


def test_prompts_are_learned_if_wanted() -> None:
    texts = Texts(10**6, prompts=True)
    texts.begin(context(0, [10, 11, 12], 0, 2))
    batch = texts.sample(1, 8, RandomStream(0))
    assert batch is not None
    # The state of the last token is not there yet; the first is predicted from nothing.
    assert batch.counted.tolist() == [[False, True, True]]
    assert Texts(10, prompts=True).sample(1, 8, RandomStream(0)) is None


def test_no_more_is_kept_than_fits() -> None:
    size = 400
    texts = Texts(size, prompts=True)
    for row in range(20):
        texts.begin(context(row, list(range(8)), 0, 7))
        assert sum(text.num_bytes for text in texts._kept) <= size
    long = list(range(3))
    texts.begin(context(0, long, 0, 2))
    for length in range(4, 90):
        long.append(length)
        texts.grow(context(0, long, length - 2, length - 1))
        kept = texts._kept[-1]
        assert sum(text.num_bytes for text in texts._kept) <= size
        assert kept.token_ids == long[-len(kept.token_ids) :]
        assert [int(state[1]) for state in kept.states] == [
            *range(length - len(kept.token_ids), length - 1)
        ]


@pytest.mark.parametrize("name", ["draft_model", "medusa", "chained"])
def test_nothing_is_learned_of_tokens_that_are_not_known(name: str) -> None:
    """The last token has no state yet, and heads look further ahead than the text goes."""
    of = verifier(SIZE)
    proposer = proposers(of)[name]
    learner = taught(proposer, of, every=1000, prompts=name == "draft_model")
    run(learner, proposer, of, range(2))
    batch = learner._texts.sample(4, 64, RandomStream(1))
    assert batch is not None
    with torch.no_grad():
        plain = learner._student.loss(*batch)
        lengths = [int(row.nonzero().max()) for row in batch.counted]
        hidden = batch.hidden.clone()
        for row, last in enumerate(lengths):
            hidden[row, last:] = 7.0
        assert torch.equal(plain, learner._student.loss(hidden, batch.token_ids, batch.counted))
    assert bool(plain > 0)


# --- refusals -------------------------------------------------------------------------------------


def test_what_cannot_learn_is_refused_in_a_line() -> None:
    of = verifier(SIZE)
    with pytest.raises(Unfit, match="NGram has no weights to train"):
        taught(NGram(2), of)
    with pytest.raises(Unfit, match="expected a loss of tokens"):
        taught(draft_model(SIZE), of, loss=ExpectedAccepted())
    with pytest.raises(UserError, match="every=0: expected an integer >= 1"):
        OnlineDistillation(every=0)
    with pytest.raises(UserError, match="swap='never': expected step or request"):
        OnlineDistillation(swap="never")
    with pytest.raises(UserError, match="delay=4: expected less than every=4"):
        OnlineDistillation(delay=4)
    with pytest.raises(UserError, match="anchor=200: expected at most 1 / learning_rate"):
        OnlineDistillation(learning_rate=0.01, anchor=200)
    with pytest.raises(UserError, match="path='nowhere': expected a file"):
        OnlineDistillation(path="nowhere")


def test_a_state_of_other_weights_is_refused(tmp_path: Any) -> None:
    of = verifier(SIZE)
    learner = taught(heads("medusa", of), of)
    file = tmp_path / "learner.pt"
    write_state(file, learner.state(), "run", [])
    with pytest.raises(UserError, match="no state of such a proposer's learner"):
        taught(draft_model(SIZE), of, path=str(file))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="no state of a learner"):
        taught(heads("medusa", of), of, path=str(file))


def test_seconds_of_learning_are_told_apart() -> None:
    of = verifier(SIZE)
    proposer = draft_model(SIZE)
    traces = run(taught(proposer, of), proposer, of, range(2))
    shares = summarize(traces)["time_shares"]
    assert sum(share["value"] for share in shares.values()) == pytest.approx(1)
    assert shares["learn"]["value"] > 0.05
    plain = decoder(of, draft_model(SIZE), None, 1.0, 8).decode(requests(1, PROMPT))
    assert "learn" not in summarize(plain)["time_shares"]
    assert Trace.from_row(traces[0].to_row()) == traces[0]
    assert "learn_seconds" not in plain[0].to_row()["steps"][0]

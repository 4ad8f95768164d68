"""Weights that are pulled back to where they were first."""

from typing import Any

import pytest
import torch

from specdec.online.anchor import AnchoredAdamW
from specdec.online.learner import Distiller
from tests.online.learning import FAST, decoder, draft_model, requests, taught, verifier
from tests.online.test_learning import PROMPT, SIZE, run, timeless

RATE = FAST["learning_rate"]


def test_a_step_is_adamws_and_a_part_of_the_way_back() -> None:
    rate, anchor, betas = 0.1, 2.0, (0.9, 0.95)
    first = torch.tensor([1.0, -2.0])
    plain, pulled = (torch.nn.Parameter(first.clone()) for _ in range(2))
    adamw = torch.optim.AdamW([plain], lr=rate, betas=betas, weight_decay=0.0)
    groups = [{"params": [pulled], "lr": rate, "weight_decay": 0.0}]
    anchored = AnchoredAdamW(groups, anchor, betas)
    for number in range(20):
        gradient = torch.tensor([0.3, -1.0 + number])
        with torch.no_grad():
            plain.copy_(pulled)
        plain.grad, pulled.grad = gradient.clone(), gradient.clone()
        adamw.step()
        anchored.step()
        expected = plain + rate * anchor * (first - plain)
        torch.testing.assert_close(pulled.detach(), expected.detach())


def distance(learner: Distiller) -> float:
    """Say how far the weights have come."""
    own: Any = draft_model(SIZE).model
    pairs = zip(own.model.parameters(), learner._student.trained.parameters(), strict=True)
    return sum(float((first - now).detach().square().sum()) for first, now in pairs) ** 0.5


def test_the_stronger_the_anchor_the_nearer_weights_stay() -> None:
    of = verifier(SIZE)
    found: list[float] = []
    for anchor in (0.0, 10.0, 1 / RATE):
        proposer = draft_model(SIZE)
        learner = taught(proposer, of, anchor=anchor)
        traces = run(learner, proposer, of, range(4))
        found.append(distance(learner))
    assert found[0] > 1.5 * found[1] > 0
    assert found[2] < 1e-6
    still = decoder(of, draft_model(SIZE), None, 1.0, 16).decode(requests(4, PROMPT))
    assert timeless(traces) == timeless(still)  # of the last one


def test_a_later_session_is_pulled_to_the_proposers_own_weights(tmp_path: Any) -> None:
    """Not to those that the earlier one ended with."""
    of, proposer = verifier(SIZE), draft_model(SIZE)
    learner = taught(proposer, of)
    run(learner, proposer, of, range(4))
    far = distance(learner)
    assert far > 0.1
    other = draft_model(SIZE)
    further = taught(other, of, anchor=1 / RATE)
    state = learner.state()
    further.restore(state)
    run(further, other, of, range(4, 5))
    assert distance(further) < 1e-6


@pytest.mark.parametrize("anchor", [0.0, 5.0])
def test_an_anchored_run_goes_on_alike(anchor: float) -> None:
    of, found = verifier(SIZE), []
    for stops in (False, True):
        proposer = draft_model(SIZE)
        learner = taught(proposer, of, anchor=anchor)
        run(learner, proposer, of, range(2))
        if stops:
            state = learner.state()
            proposer = draft_model(SIZE)
            learner = taught(proposer, of, anchor=anchor)
            learner.restore(state)
        found.append(timeless(run(learner, proposer, of, range(2, 4))))
    assert found[0] == found[1]

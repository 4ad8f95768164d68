"""Where steps begin on a text; what they add up to is held to decoding in `test_every_column`."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.core.sampling import Sampling
from specdec.core.values import Draw
from specdec.metrics import speedup
from specdec.recording.texts import Text, mean_context
from specdec.replaying.arm import ClosedArm
from specdec.replaying.closed_form import replay
from specdec.replaying.curves import Numbers
from specdec.replaying.draft_distributions import ModelDistributions
from specdec.replaying.expected_steps import Replayed, tally
from specdec.verification.rejection import Rejection
from tests.support.toy import (
    ChoosingChain,
    ChoosingTree,
    Tokens,
    full_context,
    mixture,
    table_lm,
)

PROMPT: Tokens = (0, 1)
TARGET = full_context(11, 1.0)
DRAFT = mixture(TARGET, full_context(12, 1.0), 0.4)
UNEVEN = (-1, 0, 0, 2)


@cache
def draft(tokens: Tokens) -> Tensor:
    """Leave out the draft's least likely token: fewer branches to enumerate."""
    row = DRAFT(tokens) * (DRAFT(tokens) > DRAFT(tokens).min())
    return row / row.sum()


def text_of(tokens: Tokens, reason: str, budget: int) -> Text:
    rows = [TARGET((*PROMPT, *tokens[:place])) for place in range(len(tokens))]
    log_p = tuple(float(row[token].log()) for row, token in zip(rows, tokens, strict=True))
    return Text(f"{tokens}", "", 0, PROMPT, tokens, log_p, reason, budget)


def test_starts_are_a_distribution_over_the_ways_through_a_text() -> None:
    texts = [text_of((1, 2, 0, 0), "length", 4), text_of((2, 0), "eos", 9)]
    (part,) = replay(
        texts, ModelDistributions(table_lm(draft)),
        {"arm": ClosedArm(ChoosingChain(2), Rejection())},
        Sampling(), None, vocab_size=3,
    )["arm"]  # fmt: skip
    assert torch.equal(part.starts[:, 0], torch.ones(2, dtype=torch.float64))
    assert float(part.starts[1, 2:].abs().sum()) == 0.0
    assert bool((part.starts >= 0).all())
    assert bool((part.starts <= 1 + 1e-12).all())


def test_what_is_drafted_is_known_of_fixed_shapes() -> None:
    tree = ChoosingTree(UNEVEN, Draw.WITHOUT_REPLACEMENT)
    assert ClosedArm(tree, Rejection()).num_drafted == [0, 2, 3]


@pytest.mark.parametrize(
    ("accepted", "verify", "other"),
    [
        (0, 1 + 2 + 3 + 4, 2 + 2 + 1 + 0),  # a step begins at each token
        (2, 1 + 4, 2 + 0),  # and where both candidates hold, at the first and the last one
    ],
)
def test_seconds_are_those_of_the_context_where_steps_begin(
    accepted: int, verify: float, other: float
) -> None:
    """The prompt has two tokens, so that one is cached before the first step."""
    survival = torch.zeros(1, 4, 3, dtype=torch.float64)
    survival[..., : accepted + 1] = 1.0

    def priced(contexts: Numbers) -> Numbers:  # verifying takes the context, the rest the depth
        columns = [np.stack([0 * contexts, contexts, 0 * contexts + d], axis=1) for d in range(3)]
        return np.stack(columns, axis=1)

    def plain(contexts: Numbers) -> Numbers:
        return np.stack([0 * contexts, 10 * contexts, 0 * contexts + 1], axis=1)

    part = Replayed.of([text_of((1, 2, 0, 0), "length", 4)], survival)
    found = tally([part], None, priced, plain)
    assert found.total("verify_seconds") == verify
    assert found.total("other_seconds") == other
    assert found.total("decode_seconds") == verify + other
    assert found.total("clock.num_steps") == 4
    assert found.total("clock.verify_seconds") == 10 * (1 + 2 + 3 + 4)
    assert found.total("clock.decode_seconds") == 104


def test_speed_is_predicted_with_the_seconds_of_each_context() -> None:
    """Nothing is drafted: four tokens behind contexts 1 to 4, each of which takes its own time."""
    part = Replayed.of([text_of((1, 2, 0, 0), "length", 4)], torch.ones(1, 4, 1).double())

    def plain(contexts: Numbers) -> Numbers:
        return np.stack([0 * contexts, contexts, 0 * contexts], axis=1)

    def twice(contexts: Numbers) -> Numbers:
        return 2 * plain(contexts)[:, None]

    found = tally([part], [0], twice, plain)
    assert speedup(found).value == 0.5
    assert found.total("num_emitted") / found.total("decode_seconds") == 4 / (2 * 10)


def test_the_mean_context_is_that_of_all_tokens() -> None:
    texts = [text_of((1, 2, 0, 0), "length", 4), text_of((2, 0), "eos", 9)]
    assert mean_context(texts) == (1 + 2 + 3 + 4 + 1 + 2) / 6

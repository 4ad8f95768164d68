"""Where steps begin on a text; what they add up to is held to decoding in `test_every_column`."""

from functools import cache

import torch
from torch import Tensor

from specdec.core.sampling import Sampling
from specdec.core.values import Draw
from specdec.recording.texts import Text
from specdec.replaying.arm import ClosedArm
from specdec.replaying.closed_form import replay
from specdec.replaying.draft_distributions import ModelDistributions
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

"""What replay expects of decoding, given a text, against decoding itself, enumerated exactly.

The whole loop (drafting, verifying, budget, end of the text) is enumerated over all its random
decisions. For each text that can come out, the means of all counters over the ways in which it
came out must be what replay computes from the text alone.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor
from toy import (
    NO_END,
    ChoosingChain,
    ChoosingTree,
    EnumeratedStream,
    Tokens,
    full_context,
    mixture,
    table_lm,
)

from specdec.core.protocols import VerificationRule
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.core.values import Draw
from specdec.decoding import request as request_module
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.metrics import Tally
from specdec.proof.enumeration import BranchingStream, outcomes
from specdec.proposer.draft_model import DraftModel
from specdec.replay.closed import Arm, replay
from specdec.replay.laws import DraftLaws
from specdec.replay.renewal import tally
from specdec.replay.texts import Text
from specdec.tree.fixed import FixedTree
from specdec.verification.block import Block
from specdec.verification.rejection import Rejection

EXACT = 1e-9  # rounding of steps' records is 1e-6 of E[A] alone, which is not compared
PROMPT: Tokens = (0, 1)
TARGET = full_context(11, 1.0)
DRAFT = mixture(TARGET, full_context(12, 1.0), 0.4)
UNEVEN = (-1, 0, 0, 2)
TREES: dict[str, tuple[Callable[[], FixedTree], VerificationRule, str]] = {
    "chain": (lambda: ChoosingChain(2), Rejection(), "rejection"),
    "block": (lambda: ChoosingChain(2), Block(), "block"),
    "uneven tree": (
        lambda: ChoosingTree(UNEVEN, Draw.WITHOUT_REPLACEMENT),
        Rejection(),
        "rejection",
    ),
}
# What replay computes of a step, and decoding counts; seconds and overlaps are not among it.
KNOWN = ("num_turns", "num_steps", "num_emitted", "num_accepted")


@cache
def draft(tokens: Tokens) -> Tensor:
    """Return the draft's law without its least likely token: fewer branches to enumerate."""
    row = DRAFT(tokens) * (DRAFT(tokens) > DRAFT(tokens).min())
    return row / row.sum()


Counts = tuple[tuple[str, float], ...]


def counts_of(trace: Trace) -> Counts:
    columns = Tally.of([trace]).columns
    names = [n for n in columns if n in KNOWN or n.startswith(("reached.", "at_risk.", "fin"))]
    return tuple((name, float(columns[name][0])) for name in sorted(names))


def decoded(
    tree: FixedTree, rule: VerificationRule, stopping: Stopping, patch: pytest.MonkeyPatch
) -> dict[tuple[Tokens, str], dict[str, float]]:
    """Return the mean of each counter for each text, by enumeration of the loop."""
    decoder = SpeculativeDecoder(
        table_lm(TARGET), DraftModel(table_lm(draft), tree), rule, Sampling(), stopping
    )

    def play(branching: BranchingStream) -> tuple[Tokens, str, Counts]:
        stream = EnumeratedStream(branching)
        patch.setattr(request_module, "RandomStream", lambda *key: stream)
        trace = decoder.decode([Request("a", PROMPT)])[0]
        return trace.output_ids, trace.finish_reason, counts_of(trace)

    sums: dict[tuple[Tokens, str], dict[str, float]] = {}
    masses: dict[tuple[Tokens, str], float] = {}
    for (tokens, reason, counts), mass in outcomes(play).items():
        key = tokens, reason
        masses[key] = masses.get(key, 0.0) + mass
        for name, value in counts:
            row = sums.setdefault(key, {})
            row[name] = row.get(name, 0.0) + mass * value
    return {key: {n: v / masses[key] for n, v in row.items()} for key, row in sums.items()}


def text_of(tokens: Tokens, reason: str, budget: int) -> Text:
    rows = [TARGET((*PROMPT, *tokens[:place])) for place in range(len(tokens))]
    log_p = tuple(float(row[token].log()) for row, token in zip(rows, tokens, strict=True))
    return Text(f"{tokens}", "", 0, PROMPT, tokens, log_p, reason, budget)


@pytest.mark.parametrize("ends", [NO_END, frozenset({1})], ids=["endless", "ends"])
@pytest.mark.parametrize("name", TREES)
def test_counters_given_the_text(
    name: str, ends: frozenset[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, rule, called = TREES[name]
    length = 4 if name != "uneven tree" else 3
    exact = decoded(make(), rule, Stopping(length, ends), monkeypatch)
    texts = [text_of(tokens, reason, length) for tokens, reason in exact]
    found = replay(
        texts, DraftLaws(table_lm(draft)), {"arm": Arm(make(), called)}, Sampling(),
        table_lm(TARGET), vocab_size=3,
    )  # fmt: skip
    ours = tally(found["arm"])
    place = {prompt_id: row for row, prompt_id in enumerate(ours.prompt_ids)}
    assert len(exact) > 20 or ends
    for (tokens, _), counters in exact.items():
        row = place[f"{tokens}"]
        told = {n: float(column[row]) for n, column in ours.columns.items()}
        for counter, value in counters.items():
            if counter.startswith("at_risk") and ends and name == "uneven tree":
                continue  # an end token beside the text takes away what would hang from it
            assert told.get(counter, 0.0) == pytest.approx(value, abs=EXACT), (tokens, counter)


def test_starts_are_a_distribution_over_the_ways_through_a_text() -> None:
    texts = [text_of((1, 2, 0, 0), "length", 4), text_of((2, 0), "eos", 9)]
    (part,) = replay(
        texts, DraftLaws(table_lm(draft)), {"arm": Arm(ChoosingChain(2), "rejection")},
        Sampling(), None, vocab_size=3,
    )["arm"]  # fmt: skip
    assert torch.equal(part.starts[:, 0], torch.ones(2, dtype=torch.float64))
    assert float(part.starts[1, 2:].abs().sum()) == 0.0
    assert bool((part.starts >= 0).all())
    assert bool((part.starts <= 1 + 1e-12).all())


def test_what_is_drafted_is_known_of_fixed_shapes() -> None:
    tree = ChoosingTree(UNEVEN, Draw.WITHOUT_REPLACEMENT)
    assert Arm(tree, "rejection").num_drafted == [0, 2, 3]

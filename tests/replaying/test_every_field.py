"""Every field of a step, on every way that decoding may go, against p and q.

Trees here are cut as decoding cuts them: by the budget, by end tokens and stop strings, by drafts
that are not sure or lack tokens. What each node should say is computed from its text alone; what
only holds in the mean (E[A], the distribution that a lossy rule emits) is summed over all ways.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations

import pytest
import torch
from torch import Tensor

from specdec.core.outcome import Outcome
from specdec.core.processing import processed
from specdec.core.protocols import VerificationRule
from specdec.core.randomness import Stream
from specdec.core.trace import Step, Trace
from specdec.core.values import Draw, Proposal, Verdict
from specdec.decoding import request as request_module
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.metrics import Tally
from specdec.proof.enumeration import BranchingStream, plays
from specdec.verification.lenient import Lenient
from specdec.verification.top_k import TopK
from specdec.verification.typical import Typical
from tests.replaying.test_every_column import (
    DRAFT,
    EXACT,
    NARROW,
    PATH,
    PEAKED,
    PROMPT,
    RULES,
    STOPS,
    TARGET,
    TWO,
    WHOLE,
    Case,
    chain,
    distribution_of,
    filtered,
    long,
    proposer_of,
    short,
    sparse,
    tree,
)
from tests.support.harness import names
from tests.support.toy import EnumeratedStream, Tokens, table_lm

IID, WITHOUT, TOP = Draw.IID, Draw.WITHOUT_REPLACEMENT, Draw.TOP_PLUS_ONE
LEANING, WIDE = (-1, 0, 0, 2), (-1, 0, 0, 0)
LOSSY: dict[str, VerificationRule] = {
    "lenient": Lenient(0.5),
    "typical": Typical(0.3, 0.6),
    "top_k": TopK(2),
}
CASES = [
    Case("chain", "rejection", chain(2)),
    Case("chain", "block", chain(2)),
    Case("chain", "lenient", chain(2)),
    Case("chain", "typical", chain(2)),
    Case("chain", "top_k", chain(2)),
    Case("sure chain", "rejection", chain(2, NARROW)),
    Case("sure chain", "block", chain(2, NARROW)),
    Case("sure chain", "lenient", chain(2, NARROW)),
    Case("cold draft", "match", chain(2), temperature=0.5),
    Case("short draft", "rejection", chain(2), draft=short, vocab_size=2),
    Case("short draft", "lenient", chain(2), draft=short, vocab_size=2),
    Case("long draft", "traversal", chain(2), draft=long, vocab_size=4),
    Case("path", "rejection", chain(2), sampling=PATH),
    Case("path", "typical", chain(2), sampling=PATH),
    Case("filtered", "rejection", filtered(2, 0.47)),
    Case("filtered", "block", filtered(2, 0.47)),
    Case("filtered", "match", filtered(2, 0.47)),
    Case("filtered and sure", "kseq", filtered(2, 0.47, 0, NARROW)),
    Case("path", "block filtered", filtered(2, 0.47), sampling=PATH),
    Case("two", "rejection", tree(IID, TWO)),
    Case("two", "kseq", tree(IID, TWO), sampling=PEAKED),
    Case("late fork", "rejection", tree(IID, (-1, 0, 1, 1)), sampling=PEAKED),
    Case("leaning", "traversal", tree(IID, LEANING), sampling=PEAKED),
    Case("leaning", "rejection", tree(WITHOUT, LEANING)),
    Case("leaning and peaked", "traversal", tree(WITHOUT, LEANING), sampling=PEAKED),
    Case("sure two", "rejection", tree(WITHOUT, TWO, WHOLE), draft=DRAFT),
    Case("three of two", "top_plus_one", tree(TOP, WIDE)),
    Case("three of a peaked distribution", "match", tree(TOP, WIDE), draft=DRAFT, sampling=PEAKED),
    Case("ranks", "rejection", sparse([0, 0], [1]), draft=DRAFT),
    Case("ranks", "typical", sparse([0, 0], [1]), draft=DRAFT),
    Case("sure ranks", "lenient", sparse([0, 0], [1, 0], threshold=WHOLE), draft=DRAFT),
    Case("ranks", "top_k", sparse([0], [1]), draft=DRAFT, sampling=PEAKED),
]
QUICK = {"block sure chain", "lenient short draft", "traversal leaning", "typical ranks"}


class Watched:
    """A rule whose verdicts are kept."""

    def __init__(self, rule: VerificationRule):
        self._rule = rule
        self.lossless_for, self.defined_for = rule.lossless_for, rule.defined_for
        self.needs_q = rule.needs_q
        self.seen: list[tuple[Proposal, Verdict]] = []

    def verify(self, proposal: Proposal, verifier_probs: Tensor, stream: Stream) -> Verdict:
        verdict = self._rule.verify(proposal, verifier_probs, stream)
        self.seen.append((proposal, verdict))
        return verdict


def draft_distribution_of(case: Case) -> Callable[[Tokens], Tensor]:
    """Return what candidates are drawn from; what does not pass a filter has no mass."""
    drawn = case.tree()
    passing = getattr(drawn, "passing", (0.0, 0))

    def distribution(tokens: Tokens) -> Tensor:
        said = torch.full((3,), float("-inf"), dtype=torch.float64)
        # A draft reads tokens that it does not have as its first.
        known = case.draft(tuple(t if t < case.vocab_size else 0 for t in tokens)).log()[:3]
        said[: len(known)] = known
        processors = case.sampling.of_prompt(PROMPT, case.length)
        logits = processed(processors, torch.tensor([list(tokens)]), said[None])
        q = case.sampling.at(case.temperature).warp(logits)[0]
        return q * (q >= passing[0])

    return cache(distribution)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if f"{case}" in QUICK else pytest.mark.thorough)
        for case in CASES
    ],
    ids=names(CASES),
)
def test_steps_say_what_the_distributions_say(
    case: Case, stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_module, "_rounded", tuple)  # traces keep six digits
    monkeypatch.setattr(request_module, "rounded", lambda value: value)
    p, q, means = distribution_of(case), draft_distribution_of(case), Means()
    for trace, seen, mass in decoded(case, STOPS[stop](case.length), monkeypatch):
        start = 0
        for step, (proposal, verdict) in zip(trace.steps, seen, strict=True):
            before = (*PROMPT, *trace.output_ids[:start])
            check_counts(step, proposal, verdict)
            check_nodes(step, proposal, verdict, before, p, q)
            means.add(step, proposal, verdict, before, mass)
            start += step.emitted
        assert start == len(trace.output_ids)
        said = [number for step in trace.steps for number in step.log_probs]
        texts = [(*PROMPT, *trace.output_ids[:place]) for place in range(start)]
        wanted = [
            float(TARGET(text).log()[token])
            for text, token in zip(texts, trace.output_ids, strict=True)
        ]
        assert said == pytest.approx(wanted, abs=1e-6)  # fp32, of which traces keep six digits
        check_columns(trace)
    means.check(p)


def decoded(
    case: Case, stopping: Stopping, patch: pytest.MonkeyPatch
) -> Sequence[tuple[Trace, list[tuple[Proposal, Verdict]], float]]:
    """Return every way in which a text may be written, and its probability."""
    name = case.rule.split()[0]
    rule = Watched((RULES | LOSSY)[name])
    decoder = SpeculativeDecoder(
        table_lm(TARGET),
        proposer_of(case),
        rule,
        case.sampling,
        stopping,
        allow_lossy=name in LOSSY,
        log_probs=True,
    )

    def play(branching: BranchingStream) -> tuple[Trace, list[tuple[Proposal, Verdict]]]:
        stream, rule.seen = EnumeratedStream(branching), []
        patch.setattr(request_module, "RandomStream", lambda *key: stream)
        return decoder.decode([Request("a", PROMPT)])[0], rule.seen

    return [(trace, seen, mass) for (trace, seen), mass in plays(play)]


def num_drawn(proposal: Proposal, node: int) -> int:
    withheld = proposal.withheld and node == proposal.tree.num_draft_tokens
    return len(proposal.tree.children[node]) + withheld


def check_counts(step: Step, proposal: Proposal, verdict: Verdict) -> None:
    tree, last = proposal.tree, (0, *verdict.path)[-1]
    assert (step.drafted, step.depth) == (len(tree.parents) - 1, max(tree.depths))
    ended = step.emitted <= len(verdict.path)
    assert step.accepted == step.emitted - (not ended)
    refused = Outcome.RECOVERED if num_drawn(proposal, last) else Outcome.BONUS
    assert step.outcome is (Outcome.ENDED if ended else refused)


def check_nodes(
    step: Step,
    proposal: Proposal,
    verdict: Verdict,
    before: Tokens,
    p: Callable[[Tokens], Tensor],
    q: Callable[[Tokens], Tensor],
) -> None:
    """Hold what is said of visited nodes to the distributions after their texts."""
    tree, text = proposal.tree, before
    overlaps, bounds = list[float](), list[float]()
    for node in (0, *verdict.path)[: step.emitted]:
        text = text if node == 0 else (*text, tree.token_ids[node])
        drawn = num_drawn(proposal, node)
        if drawn == 0:
            continue
        if proposal.draw is Draw.DETERMINISTIC:
            borne = {tree.token_ids[child] for child in tree.children[node]}
            overlaps.append(float(p(text)[sorted(borne)].sum()))
            continue
        overlaps.append(float(p(text).minimum(q(text)).sum()))
        if node == 0:
            held_back = (1 - q(text).sum()).clamp(min=0)[None]
            wide = torch.cat([p(text), torch.zeros(1)]), torch.cat([q(text), held_back])
            bounds.append(best_transport(*wide, drawn))
    assert step.overlap == pytest.approx(overlaps, abs=EXACT)
    assert step.bound == pytest.approx(bounds, abs=EXACT)


def best_transport(p: Tensor, q: Tensor, num_draws: int) -> float:
    """Return 1 + min_H [p(H) - q(H)^k] over ALL sets H of tokens (Sun et al. 2023)."""
    subsets = [list(h) for n in range(len(p) + 1) for h in combinations(range(len(p)), n)]
    return 1 + min(float(p[h].sum() - q[h].sum() ** num_draws) for h in subsets)


class Means:
    """What is told of steps from the same text, weighed with how likely each way was."""

    def __init__(self) -> None:
        self._accepted: dict[Tokens, list[float]] = {}  # told, and counted
        self._emitted: dict[tuple[Tokens, Tokens], Tensor] = {}  # what comes behind candidates
        self._strays: dict[tuple[Tokens, Tokens], set[tuple[float, ...]]] = {}

    def add(
        self, step: Step, proposal: Proposal, verdict: Verdict, before: Tokens, mass: float
    ) -> None:
        sums = self._accepted.setdefault(before, [0.0, 0.0])
        assert step.expected_accepted is not None
        sums[0] += mass * step.expected_accepted
        sums[1] += mass * step.accepted
        tokens = [proposal.tree.token_ids[node] for node in verdict.path]
        assert len(step.divergence) in (0, step.emitted)
        for depth, stray in enumerate(step.divergence):
            node = (0, *verdict.path)[depth]
            if num_drawn(proposal, node) == 0:
                assert stray == (0.0, 0.0), "nothing strays where nothing was submitted"
                continue
            key = before, tuple(tokens[:depth])
            row = self._emitted.setdefault(key, torch.zeros(3, dtype=torch.float64))
            row[(*tokens, verdict.next_token)[depth]] += mass
            self._strays.setdefault(key, set()).add(tuple(round(each, 10) for each in stray))

    def check(self, p: Callable[[Tokens], Tensor]) -> None:
        for text, (reported, counted) in self._accepted.items():
            assert reported == pytest.approx(counted, abs=EXACT), f"E[A] after {text}"
        for (before, path), row in self._emitted.items():
            distribution, own = row / row.sum(), p((*before, *path))
            variation = 0.5 * float((distribution - own).abs().sum())
            kl = float(
                (distribution * (distribution / own).log()).where(distribution > 0, 0.0).sum()
            )
            (recorded,) = self._strays[before, path]
            assert recorded == pytest.approx((variation, kl), abs=EXACT), (before, path)


def check_columns(trace: Trace) -> None:
    """Add up by hand."""
    columns = {name: float(column[0]) for name, column in Tally.of([trace]).columns.items()}
    steps = trace.steps
    assert columns["num_overlap"] == sum(len(step.overlap) for step in steps)
    assert columns["overlap"] == pytest.approx(sum(sum(step.overlap) for step in steps))
    assert columns["num_bound"] == sum(len(step.bound) for step in steps)
    assert columns["bound"] == pytest.approx(sum(sum(step.bound) for step in steps))
    strays = [stray for step in steps for stray in step.divergence]
    assert columns["num_divergence"] == len(strays)
    assert columns["total_variation"] == pytest.approx(sum(stray[0] for stray in strays))
    assert columns["kl"] == pytest.approx(sum(stray[1] for stray in strays))
    assert columns["largest_drafted"] == max(step.drafted for step in steps)
    assert columns["num_drafts"] == sum(step.drafted > 0 for step in steps)
    assert columns["num_branched"] == sum(step.drafted > step.depth for step in steps)
    for depth in range(1, 1 + max(step.depth for step in steps)):
        reached = [step for step in steps if step.accepted >= depth - 1 and step.depth >= depth]
        risked = [s for s in reached if s.outcome is not Outcome.ENDED or s.accepted >= depth]
        assert columns[f"at_risk.{depth}"] == len(risked)
        assert columns[f"reached.{depth}"] == sum(step.accepted >= depth for step in steps)

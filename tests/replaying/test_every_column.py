"""Every number that replay tells of a text, against decoding itself, enumerated exactly.

The whole loop (drafting, verifying, budget, end of the text) is enumerated over all its random
decisions. For each text that can come out, the mean of each counter over the ways in which it came
out must be what replay computes from the text alone; a counter that it cannot know is not there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from specdec.core.processing import processed
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
from specdec.recording.texts import Text
from specdec.replaying.arm import ClosedArm
from specdec.replaying.closed_form import replay
from specdec.replaying.draft_distributions import ModelDistributions
from specdec.replaying.expected_steps import tally
from specdec.replaying.redraft import jump
from specdec.tree.fixed import FixedTree
from specdec.tree.sparse import Sparse
from specdec.verification.block import Block, clipped_along
from specdec.verification.gbv import GreedyMultiPath
from specdec.verification.kseq import KSeq
from specdec.verification.kseq_block import KSeqBlock
from specdec.verification.match import Match
from specdec.verification.rejection import Rejection
from specdec.verification.top_plus_one import TopPlusOne
from specdec.verification.traversal import Traversal
from tests.support.harness import names
from tests.support.toy import (
    ChoosingChain,
    ChoosingFiltered,
    ChoosingTree,
    Conditional,
    EnumeratedStream,
    Tokens,
    full_context,
    mixture,
    table_lm,
)

EXACT = 1e-9
OF_STEPS = ("num_", "reached.", "at_risk.", "finished.", "largest_", "draft_calls")
NO_MEAN = {"largest_drafted", "num_divergence", "draft_calls"}
UNSEEN = {"num_overlap", "num_bound"}  # by a stand-in for the verifier
PROMPT: Tokens = (0, 1)
TARGET = full_context(11, 1.0)
DRAFT = mixture(TARGET, full_context(12, 1.0), 0.4)
RULES: dict[str, VerificationRule] = {
    "rejection": Rejection(),
    "block": Block(),
    "match": Match(),
    "kseq": KSeq(),
    "traversal": Traversal(),
    "gbv": GreedyMultiPath(),
    "kseq_block": KSeqBlock(),
    "top_plus_one": TopPlusOne(),
}
STOPS: dict[str, Callable[[int], Stopping]] = {
    "endless": Stopping,
    "end token": lambda length: Stopping(length, frozenset({1})),
    "stop string": lambda length: Stopping(
        length, stop_strings=("2", "01"), decode=lambda ids: "".join(map(str, ids))
    ),
}
TWO, FORKED, LEANING, WIDE = (-1, 0, 0), (-1, 0, 0, 1, 1, 2, 2), (-1, 0, 0, 2), (-1, 0, 0, 0)
TWIGS, FIRST, SIDES, MIDDLE = (-1, 0, 0, 1, 2), (-1, 0, 0, 1), (-1, 0, 0, 0, 1, 3), (-1, 0, 0, 0, 2)
PAIR = (-1, 0, 0, 1, 2, 3, 4)
SOFT, PEAKED = Sampling(), Sampling(top_p=0.7)
SIZE, BRANCHED, RISKS, DEEP_RISKS = "num_drafted", "num_branched", "at_risk.2", "at_risk.3"


@cache
def narrow(tokens: Tokens) -> Tensor:
    """Leave out the draft's least likely token: fewer branches to enumerate."""
    row = DRAFT(tokens) * (DRAFT(tokens) > DRAFT(tokens).min())
    return row / row.sum()


@cache
def short(tokens: Tokens) -> Tensor:
    """Return the distribution of a draft that has two of the three tokens."""
    return DRAFT(tokens)[:2] / DRAFT(tokens)[:2].sum()


@cache
def long(tokens: Tokens) -> Tensor:
    """Return the distribution of a draft that has a token more, which it often says."""
    return torch.cat([0.7 * DRAFT(tokens), torch.tensor([0.3], dtype=torch.float64)])


def less_of_the_first(input_ids: Tensor, scores: Tensor) -> Tensor:
    """A processor that looks at the path: its first and its last token are less likely."""
    falls = torch.full_like(scores[:, :1], -1.5)
    return scores.scatter_add(1, input_ids[:, 2:3], falls[:, : input_ids.shape[1] - 2]).scatter_add(
        1, input_ids[:, -1:], falls
    )


PATH = Sampling(processors=[less_of_the_first])


@dataclass(frozen=True)
class Case:
    """An arm, and which of its counters no text tells."""

    name: str
    rule: str
    tree: Callable[[], FixedTree]
    unknown: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()  # the same besides where some tokens end a text
    draft: Conditional = narrow
    vocab_size: int = 3  # of the draft
    sampling: Sampling = SOFT
    temperature: float | None = None
    length: int = 3

    def __str__(self) -> str:
        return f"{self.rule} {self.name}"


def sure(tree: FixedTree, threshold: float) -> FixedTree:
    """Let drafting stop where the draft is not sure."""
    tree.min_confidence = threshold
    return tree


def tree(draw: Draw, parents: tuple[int, ...], threshold: float = 0.0) -> Callable[[], FixedTree]:
    return lambda: sure(ChoosingTree(parents, draw), threshold)


def chain(gamma: int, threshold: float = 0.0) -> Callable[[], FixedTree]:
    return lambda: sure(ChoosingChain(gamma), threshold)


def filtered(
    gamma: int, min_prob: float, top_k: int = 0, threshold: float = 0.0
) -> Callable[[], FixedTree]:
    return lambda: ChoosingFiltered(gamma, min_prob, top_k, threshold)


def sparse(*paths: list[int], threshold: float = 0.0) -> Callable[[], FixedTree]:
    return lambda: Sparse(paths, threshold)


IID, WITHOUT, TOP = Draw.IID, Draw.WITHOUT_REPLACEMENT, Draw.TOP_PLUS_ONE
NARROW, WHOLE = 0.53, 0.46  # between what `narrow` and `DRAFT` give to their likeliest tokens
CASES = [
    Case("chain", "rejection", chain(2)),
    Case("chain", "block", chain(2)),
    Case("chain", "match", chain(2)),
    Case("chain", "kseq", chain(2)),
    Case("chain", "traversal", chain(2)),
    Case("chain", "top_plus_one", chain(2)),
    Case("one token", "rejection", chain(1), draft=DRAFT),
    Case("short draft", "rejection", chain(2), draft=short, vocab_size=2),
    Case("cold draft", "rejection", chain(2), temperature=0.5),
    Case("sure chain", "rejection", chain(2, NARROW), (SIZE,)),
    Case("sure chain", "block", chain(2, NARROW), (SIZE,)),
    Case("sure chain", "match", chain(2, NARROW), (SIZE,)),
    Case("sure token", "rejection", chain(1, WHOLE), draft=DRAFT),
    Case("filtered", "rejection", filtered(2, 0.47), (SIZE,)),
    Case("filtered", "rejection top", filtered(2, 0.0, 1), (SIZE,), draft=DRAFT),
    Case("filtered", "match", filtered(2, 0.47), (SIZE,)),
    Case("filtered", "kseq", filtered(2, 0.47), (SIZE,)),
    Case("filtered", "block", filtered(2, 0.47), (SIZE,)),
    Case("filtered", "traversal", filtered(2, 0.47), (SIZE,)),
    Case("filtered and sure", "rejection", filtered(2, 0.47, 0, NARROW), (SIZE,)),
    Case("filtered and sure", "block", filtered(2, 0.47, 0, NARROW), (SIZE,)),
    Case("top filtered", "block", filtered(2, 0.0, 1), (SIZE,), draft=DRAFT),
    Case("filtered token", "block", filtered(1, 0.47), draft=DRAFT),
    Case("two", "rejection", tree(IID, TWO)),
    Case("two paths", "rejection", tree(Draw.PATHS, TWIGS)),
    Case("two paths", "gbv", tree(Draw.PATHS, TWIGS), ends=(SIZE,)),
    Case("two paths", "kseq_block", tree(Draw.PATHS, TWIGS), ends=(SIZE,)),
    Case("two peaked paths", "gbv", tree(Draw.PATHS, TWIGS), ends=(SIZE,), sampling=PEAKED),
    Case("two peaked paths", "kseq_block", tree(Draw.PATHS, TWIGS), ends=(SIZE,), sampling=PEAKED),
    Case("two cold paths", "gbv", tree(Draw.PATHS, TWIGS), ends=(SIZE,), sampling=PEAKED,
         temperature=0.5),
    Case("two sure paths", "gbv", tree(Draw.PATHS, TWIGS, NARROW), (SIZE, RISKS),
         sampling=PEAKED),
    Case("two sure paths", "kseq_block", tree(Draw.PATHS, TWIGS, NARROW), (SIZE, RISKS),
         sampling=PEAKED),
    Case("paths beyond the budget", "gbv", tree(Draw.PATHS, PAIR), ends=(SIZE,), sampling=PEAKED),
    Case("paths beyond the budget", "kseq_block", tree(Draw.PATHS, PAIR), ends=(SIZE,),
         sampling=PEAKED),
    Case("three short paths", "gbv", tree(Draw.PATHS, WIDE)),
    Case("three short paths", "kseq_block", tree(Draw.PATHS, WIDE)),
    Case("two", "rejection without", tree(WITHOUT, TWO), draft=DRAFT),
    Case("sure two", "rejection without", tree(WITHOUT, TWO, WHOLE), draft=DRAFT),
    Case("two of a peaked distribution", "rejection without", tree(WITHOUT, TWO), sampling=PEAKED),
    Case("forked", "rejection without", tree(WITHOUT, FORKED)),
    Case("leaning", "rejection without", tree(WITHOUT, LEANING)),
    Case("leaning and peaked", "rejection without", tree(WITHOUT, LEANING), sampling=PEAKED),
    Case("deep first", "rejection without", tree(WITHOUT, FIRST), draft=DRAFT),
    Case("deep first", "match without", tree(WITHOUT, FIRST), draft=DRAFT),
    Case("leaning", "match without", tree(WITHOUT, LEANING), draft=DRAFT),
    Case("leaning and peaked", "match without", tree(WITHOUT, LEANING), sampling=PEAKED),
    Case("two", "top_plus_one", tree(TOP, TWO), draft=DRAFT),
    Case("three of two", "top_plus_one", tree(TOP, WIDE)),
    Case("twigs", "top_plus_one", tree(TOP, TWIGS), draft=DRAFT),
    Case("deep first", "top_plus_one", tree(TOP, FIRST), draft=DRAFT),
    Case("leaning", "top_plus_one", tree(TOP, LEANING), draft=DRAFT),
    Case("deep sides", "top_plus_one", tree(TOP, SIDES)),
    Case("deep middle", "top_plus_one", tree(TOP, MIDDLE), draft=DRAFT, temperature=0.0),
    Case("deep sides", "match top", tree(TOP, SIDES), draft=DRAFT),
    Case("leaning and peaked", "match top", tree(TOP, LEANING), draft=DRAFT, sampling=PEAKED),
    Case("three of a peaked distribution", "match", tree(TOP, WIDE), draft=DRAFT, sampling=PEAKED),
    Case("forked and peaked", "top_plus_one", tree(TOP, FORKED), (SIZE, BRANCHED),
         sampling=PEAKED),
    Case("ranks", "rejection", sparse([0, 0], [1]), draft=DRAFT),
    Case("three ranks", "match", sparse([0, 0], [1, 0], [2]), draft=DRAFT),
    Case("a late fork", "match", sparse([0, 0], [0, 1]), draft=DRAFT),
    Case("sure ranks", "match", sparse([0, 0], [1, 0], [2, 0], threshold=WHOLE), (SIZE, RISKS),
         draft=DRAFT),
    Case("long draft", "block", chain(2), draft=long, vocab_size=4),
    Case("path", "rejection", chain(2), sampling=PATH),
    Case("path", "block", filtered(2, 0.47), (SIZE,), sampling=PATH),
    Case("path", "match", sparse([0, 0], [1]), draft=DRAFT, sampling=PATH),
    Case("chain", "rejection", chain(3), (), (SIZE,), sampling=PEAKED, length=4),
    Case("sure chain", "block", chain(3, 0.6), (SIZE,), length=4),
    Case("filtered", "block", filtered(3, 0.0, 1), (SIZE,), draft=DRAFT, sampling=PEAKED, length=4),
    Case("twigs", "match", tree(IID, TWIGS)),
    Case("twigs", "rejection", tree(IID, TWIGS)),
    Case("leaning", "kseq", tree(IID, LEANING), sampling=PEAKED),
    Case("sure forked", "rejection", tree(IID, FORKED, NARROW), (SIZE, RISKS)),
    Case("leaning", "match", tree(IID, LEANING)),
    Case("deep first", "rejection", tree(IID, FIRST)),
    Case("deep sides", "rejection", tree(IID, SIDES), sampling=PEAKED),
    Case("deep middle", "kseq", tree(IID, MIDDLE), sampling=PEAKED),
    Case("deep middle", "match", tree(IID, MIDDLE)),
    Case("a late fork", "rejection", tree(IID, (-1, 0, 1, 1))),
    Case("deep ranks", "rejection", sparse([0, 0, 0], [0, 1], [1, 0, 1]), (), (SIZE, DEEP_RISKS),
         draft=DRAFT, length=4),
]  # fmt: skip


JUMPS = [
    Case("chain", "match", chain(2)),
    Case("sure chain", "match", chain(2, NARROW)),
    Case("filtered", "match", filtered(2, 0.47)),
    Case("twigs", "match", tree(IID, (-1, 0, 0, 2))),
    Case("two", "match", tree(WITHOUT, TWO), draft=DRAFT),
    Case("three", "match", tree(TOP, WIDE), draft=DRAFT, sampling=PEAKED),
    Case("ranks", "rejection", sparse([0, 0], [1]), draft=DRAFT),
    Case("sure ranks", "match", sparse([0, 0], [1, 0], [2], threshold=WHOLE), draft=DRAFT),
    Case("short draft", "match", chain(2), draft=short, vocab_size=2),
    Case("path", "match", chain(2), sampling=PATH),
]


QUICK = {
    "rejection short draft",
    "block top filtered",
    "match filtered",
    "rejection sure two",
    "top_plus_one two",
    "match three ranks",
    "match sure ranks",
    "match short draft",
    "rejection without leaning",
    "top_plus_one leaning",
    "rejection a late fork",
}


def marked(cases: Sequence[Case]) -> list[object]:
    """Leave to `make test` what is quick, and all else to CI."""
    return [
        pytest.param(case, marks=() if f"{case}" in QUICK else pytest.mark.thorough)
        for case in cases
    ]


def proposer_of(case: Case) -> DraftModel:
    draft = table_lm(case.draft, case.vocab_size)
    return DraftModel(draft, case.tree(), temperature=case.temperature)


def decoded(
    case: Case, stopping: Stopping, patch: pytest.MonkeyPatch
) -> dict[tuple[Tokens, str], Mapping[str, float]]:
    """Return the mean of each counter for each text, by enumeration of the loop."""
    rule = RULES[case.rule.split()[0]]
    decoder = SpeculativeDecoder(table_lm(TARGET), proposer_of(case), rule, case.sampling, stopping)
    return means(lambda: decoder.decode([Request("a", PROMPT)])[0], patch)


def means(
    play: Callable[[], Trace], patch: pytest.MonkeyPatch
) -> dict[tuple[Tokens, str], Mapping[str, float]]:
    """Return the mean of each counter for each text that may come out, over all noise."""

    def counted(branching: BranchingStream) -> tuple[Tokens, str, tuple[tuple[str, float], ...]]:
        stream = EnumeratedStream(branching)
        patch.setattr(request_module, "RandomStream", lambda *key: stream)
        trace = play()
        columns = Tally.of([trace]).columns
        counts = [(n, float(column[0])) for n, column in columns.items() if "seconds" not in n]
        return trace.output_ids, trace.finish_reason, tuple(counts)

    sums: dict[tuple[Tokens, str], dict[str, float]] = {}
    masses: dict[tuple[Tokens, str], float] = {}
    for (tokens, reason, counts), mass in outcomes(counted).items():
        key = tokens, reason
        masses[key] = masses.get(key, 0.0) + mass
        for name, value in counts:
            row = sums.setdefault(key, {})
            row[name] = row.get(name, 0.0) + mass * value
    return {key: {n: v / masses[key] for n, v in row.items()} for key, row in sums.items()}


def distribution_of(case: Case) -> Conditional:
    """Return what texts are drawn from."""

    def distribution(tokens: Tokens) -> Tensor:
        logits = processed(
            case.sampling.of_prompt(PROMPT, case.length),
            torch.tensor([list(tokens)]),
            TARGET(tokens).log()[None],
        )
        return case.sampling.warp(logits)[0]

    return cache(distribution)


def text_of(tokens: Tokens, reason: str, case: Case) -> Text:
    distribution = distribution_of(case)
    rows = [distribution((*PROMPT, *tokens[:place])) for place in range(len(tokens))]
    log_p = tuple(float(row[token].log()) for row, token in zip(rows, tokens, strict=True))
    return Text(f"{tokens}", "", 0, PROMPT, tokens, log_p, reason, case.length)


def replayed(case: Case, texts: list[Text], stopping: Stopping) -> Tally:
    arm = ClosedArm(case.tree(), RULES[case.rule.split()[0]], case.temperature)
    distributions = ModelDistributions(table_lm(case.draft, case.vocab_size))
    found = replay(
        texts, distributions, {"": arm}, case.sampling, table_lm(TARGET), 3, stopping=stopping
    )
    return tally(found[""], arm.num_drafted)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("case", marked(CASES), ids=names(CASES))
def test_what_is_told_is_the_mean_over_all_ways(
    case: Case, stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = STOPS[stop](case.length)
    exact = decoded(case, stopping, monkeypatch)
    ours = replayed(case, [text_of(*key, case) for key in exact], stopping)
    place = {prompt_id: row for row, prompt_id in enumerate(ours.prompt_ids)}
    seen = {name for counters in exact.values() for name in counters}
    for (tokens, _), counters in exact.items():
        for name, column in ours.columns.items():
            found = float(column[place[f"{tokens}"]])
            assert found == pytest.approx(counters.get(name, 0.0), abs=EXACT), (tokens, name)
    unknown = case.unknown + (case.ends if stop != "endless" else ())
    filled = {name for name in seen if name.startswith(OF_STEPS)} - NO_MEAN - UNSEEN
    assert filled - ours.columns.keys() == seen & {*unknown}, (
        filled - ours.columns.keys(),
        unknown,
    )


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("case", marked(JUMPS), ids=names(JUMPS))
def test_jumps_count_as_decoding_does_in_the_mean(
    case: Case, stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all candidates that may be drawn, for each text that decoding may write."""
    stopping = STOPS[stop](case.length)
    for (tokens, reason), counters in decoded(case, stopping, monkeypatch).items():
        text = text_of(tokens, reason, case)
        jumps = means(
            lambda text=text: jump(
                [text], proposer_of(case), table_lm(TARGET), case.sampling, stopping
            )[0],
            monkeypatch,
        )
        assert jumps.keys() == {(tokens, reason)}
        found = jumps[tokens, reason]
        for name in {name for name in counters if name.startswith(OF_STEPS)} - UNSEEN:
            wanted = pytest.approx(counters[name], abs=EXACT)
            assert found.get(name, 0.0) == wanted, (tokens, name)


def test_what_blocks_carry_along_a_path_is_at_most_one() -> None:
    """A token that p finds likelier than q makes up for nothing that comes behind it."""
    log_ratios = [torch.tensor([[-1.0]]), torch.tensor([[0.5]]), torch.tensor([[0.25]])]
    assert clipped_along(log_ratios).item() == pytest.approx(torch.tensor(-0.75).exp().item())

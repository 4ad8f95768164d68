"""Depths that choose themselves: from what steps cost and how far candidates were accepted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import exp, log1p

from specdec.core.errors import UserError, require_bool, require_number
from specdec.core.protocols import TreePolicy
from specdec.core.values import Context, Proposal, Verdict
from specdec.pacing.chances import Chances
from specdec.pacing.ladder import DepthChoice, best, price, rungs
from specdec.pacing.ledger import Ledger
from specdec.pacing.offers import Offers
from specdec.pacing.probing import Probing
from specdec.pacing.seconds import FiledSeconds, MeasuredSeconds, StepSeconds


@dataclass
class StepDepths:
    """What the step in progress was let do."""

    depths: Sequence[int]
    lengths: Sequence[int] = ()  # of the texts before it; of none that is plain
    is_caught_up: bool = True  # whether the proposer had few tokens to read first


class Adaptive:
    """The depth of most expected tokens per second, at every step anew.

    In a step that may draft to depth d, request r emits

        E_r(d) = 1 + sum over k <= d of P(A_r >= k)

    tokens (Leviathan et al. 2023, equation 1, with a rate for each depth), and all B requests in
    flight take c(d) = propose(B, d) + rest(B, n(d)) seconds. Both are estimated from past steps:
    the decoder's own seconds, or those of a file, and counts of what was accepted, of each request
    and of all. The depth with the largest

        (product over requests of E_r(d)) ** (1 / B) / c(d)

    wins, over a short ladder of depths, so that few programs are ever made. The mean is geometric
    since a text is as long at any pace: who is slow is in flight for longer, and the sum of the
    times L / E_r(d) * c(d) is least there. Depth 0 is plain decoding: the proposer is not asked,
    and catches up when it is.

    The floor: drafting is allowed only while all steps together lost less than `loss` of the time
    against plain decoding, and a few steps (`Ledger`). Where nothing pays, a few steps are probed
    now and then, after pauses that double (`Probing`), for at most `loss` of the time again.

    Nothing is looked at but past steps, so that a lossless rule stays lossless. With measured
    seconds two runs may have unlike steps: at temperature 0 the same texts, at others the same
    distribution. With `costs_path` equal runs have equal steps.

    Args:
        loss: share of the time that may be lost against plain decoding, 0.01.
        costs_path: a file of `specdec-costs`; None: the decoder's own seconds are measured.
        by_price: whether drafting also stops where the draft's likeliest token is less likely than
            what one more token costs, in tokens: its seconds times tokens per second.
        draft: what the proposer is called in that file; None: the arm's own.
        tree: that the proposer grows, where the file is read; None: the arm's own.

    Raises:
        UserError: an option is out of its range, or the file says nothing about this proposer.
    """

    def __init__(
        self,
        loss: float = 0.01,
        costs_path: str | None = None,
        by_price: bool = False,
        draft: str | None = None,
        tree: TreePolicy | None = None,
    ):
        require_number("loss", loss, 0.0, 1.0)
        require_bool("by_price", by_price)
        self._seconds: StepSeconds = MeasuredSeconds()
        if costs_path is not None:
            if draft is None:
                raise UserError(f"costs_path={costs_path!r}: expected draft=NAME as well")
            self._seconds = FiledSeconds(costs_path, draft, tree)
        self._by_price = by_price
        self.min_confidence = 0.0
        self._chances = Chances()
        self._ledger = Ledger(loss)
        self._probing = Probing(self._seconds.is_measured)
        self._max_depth = 0
        self._offers = Offers(0)
        self._plan = StepDepths(())
        self._names: list[str] = []
        self._read_to: dict[int, tuple[str, int]] = {}  # by row: tokens when it was last asked

    def open(self, max_depth: int) -> None:
        """Forget the rows; what was learnt of all requests, and of seconds, stays."""
        self._chances.forget_rows()
        self._read_to = {}
        if max_depth != self._max_depth:
            self._max_depth = max_depth
            self._offers = Offers(max_depth)
            self._rungs = rungs(max_depth)

    def depths(self, contexts: Sequence[Context]) -> Sequence[int]:
        """Choose for all requests; one that hardly gains is not asked."""
        names = [each.request_id for each in contexts]
        is_new, self._names = names != self._names, names
        if self._max_depth == 0 or self._probing.rests(is_new):
            self._plan = StepDepths([0] * len(contexts))
        else:
            self._plan = self._choose(contexts)
        return self._plan.depths

    def _choose(self, contexts: Sequence[Context]) -> StepDepths:
        num_rows = len(contexts)
        shared = self._chances.shared(self._max_depth)
        gains = [self._gains(each, shared) for each in contexts]
        choices = self._choices(contexts, gains)
        if choices is None:  # nothing was ever timed: the cheapest look
            return self._ask(contexts, [self._rungs[0]] * num_rows)
        if self._probing.wants_plain(choices, self._seconds.num_plain(num_rows)):
            return StepDepths([0] * num_rows)
        found = best(choices)
        chosen = self._allowed(choices, found)
        if chosen.depth == 0:
            return StepDepths([0] * num_rows)
        if self._by_price:
            self.min_confidence = price(choices, chosen, num_rows)
        depths = [chosen.depth] * num_rows
        if chosen is found:
            depths = self._worth_asking(depths, gains, chosen)
        return self._ask(contexts, depths)

    def _allowed(self, choices: Sequence[DepthChoice], found: DepthChoice) -> DepthChoice:
        """Return the best choice, or a trial of another; the plain one where too much was lost."""
        plain = choices[0]
        chosen = self._probing.choice(choices, found)
        if chosen.depth > 0 and not self._ledger.allows(1 / plain.rate):
            self._probing.put_off()
            return plain
        if chosen is found:
            return found
        risk = max(0.0, chosen.seconds - chosen.tokens / found.rate)
        if chosen.depth > 0 and not self._ledger.allows_trial(risk, 1 / plain.rate):
            return found
        return chosen

    def _gains(self, context: Context, shared: Sequence[float]) -> list[float]:  # [D + 1]
        """Return E[A] of a request for each depth; no more than it can use."""
        found = self._chances.expected(context.row, context.request_id, shared)
        most = min(context.max_depth, self._max_depth)
        return found[: most + 1] + [found[most]] * (self._max_depth - most)

    def _choices(
        self, contexts: Sequence[Context], gains: Sequence[Sequence[float]]
    ) -> list[DepthChoice] | None:
        """Return what each depth brings and takes; None: nothing is known of either."""
        num_rows = len(contexts)
        context = sum(len(each.token_ids) for each in contexts) / num_rows
        plain = self._seconds.read(num_rows, 1, context)
        if plain is None or self._seconds.propose(num_rows, self._rungs[-1]) is None:
            return None
        found = [DepthChoice(0, float(num_rows), plain)]
        share = self._offers.share
        reach = self._seconds.reach
        for depth in self._rungs:
            if depth > max(reach, self._rungs[0]):
                break
            propose = self._seconds.propose(num_rows, depth)
            read = self._seconds.read(num_rows, 1 + self._offers.tokens(depth), context)
            assert propose is not None
            assert read is not None
            seconds = propose + (1 - share) * plain + share * max(read, plain)
            logs = [log1p(each[depth]) for each in gains]
            found.append(DepthChoice(depth, num_rows * exp(sum(logs) / num_rows), seconds))
        return found

    def _worth_asking(
        self, depths: Sequence[int], gains: Sequence[Sequence[float]], chosen: DepthChoice
    ) -> list[int]:
        """Leave out requests that gain less than half their share of what drafting takes."""
        propose = self._seconds.propose(len(depths), chosen.depth) or 0.0
        least = 0.5 * propose / len(depths) * chosen.tokens / chosen.seconds
        found = [d if each[d] >= least else 0 for d, each in zip(depths, gains, strict=True)]
        return found if any(found) else [*depths]

    def _ask(self, contexts: Sequence[Context], depths: Sequence[int]) -> StepDepths:
        behind = 0
        lengths = [len(each.token_ids) for each in contexts]
        for context, depth, length in zip(contexts, depths, lengths, strict=True):
            name, read = self._read_to.get(context.row, ("", 0))
            if name != context.request_id:  # its prompt was read beforehand
                read = context.num_prompt_tokens
                self._read_to[context.row] = context.request_id, read
            if depth > 0:
                behind = max(behind, length - read)
                self._read_to[context.row] = context.request_id, length
        return StepDepths(depths, lengths, behind <= self._max_depth + 1)

    def learn(
        self,
        contexts: Sequence[Context],
        proposals: Sequence[Proposal],
        verdicts: Sequence[Verdict],
        seconds: Mapping[str, float],
    ) -> None:
        """Count what was accepted, remember the seconds, and book what was lost or gained."""
        plan, num_rows = self._plan, len(contexts)
        depth, propose = max(plan.depths), seconds["propose"]
        rest = seconds["verify"] + seconds["other"]
        largest = max(each.tree.num_draft_tokens for each in proposals)
        # What was caught up on is another matter than drafting to a depth.
        drafting = propose if plan.is_caught_up else None
        context = sum(len(each.token_ids) for each in contexts) / num_rows
        took = self._seconds.booked(num_rows, depth, largest + 1, context, propose + rest)
        self._seconds.note(num_rows, depth, largest + 1, drafting, rest)
        emitted = [1] * num_rows
        if depth > 0:
            now = (len(each.token_ids) for each in contexts)
            emitted = [end - start for end, start in zip(now, plan.lengths, strict=True)]
            self._offers.note(depth, _counts(proposals, depth))
            self._count(contexts, verdicts, emitted)
        plain = self._seconds.read(num_rows, 1, context)
        if took is not None and plain is not None:  # held against plain steps of as many tokens
            usual = took if depth == 0 else sum(emitted) / num_rows * plain
            self._ledger.note(took, usual)

    def _count(
        self, contexts: Sequence[Context], verdicts: Sequence[Verdict], emitted: Sequence[int]
    ) -> None:
        """Count what was accepted of the requests that were asked."""
        rows = zip(contexts, verdicts, emitted, self._plan.depths, strict=True)
        for context, verdict, number, depth in rows:
            own = context.row, context.request_id
            if depth == 0:
                self._chances.own(*own).fade()
                continue
            accepted = min(number, len(verdict.path))
            ended = number <= len(verdict.path)  # which says nothing of the next candidate
            usable = accepted if ended else min(depth, context.max_depth)
            self._chances.note(*own, usable, accepted, accepted < usable)


def _counts(proposals: Sequence[Proposal], depth: int) -> list[int]:  # [d + 1]
    """Return how many candidates the largest proposal has down to depth 0, 1, ..."""
    tree = max((each.tree for each in proposals), key=lambda tree: tree.num_draft_tokens)
    counts = [0] * (depth + 1)
    for each in tree.depths[1:]:
        counts[each] += 1
    return [*accumulate(counts)]

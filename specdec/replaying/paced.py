"""Replay where each step chooses its own depth: what steps cost decides what the next ones are.

A pace learns from seconds and from what was accepted, so that its steps are no Markov chain on the
text, and nothing adds up in closed form. But what a step accepts, given the text, is known at every
place and for every depth. So decoding is played along the texts: the pace chooses, chance accepts
with the probability that the closed form says, and the seconds are those of a file of costs. The
result is one sample of what decoding would count, and all of it without a model.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from specdec.core.outcome import Outcome
from specdec.core.protocols import Pace, Proposer
from specdec.core.sampling import Sampling
from specdec.core.trace import Step, Trace
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Proposal, Verdict
from specdec.decoding.request import Flight, Request
from specdec.decoding.stopping import Stopping
from specdec.recording.texts import Text
from specdec.replaying.costs import Costs, ProposerKey, Seconds, TreeShape
from specdec.replaying.expected_steps import Replayed

NEAR = 32  # contexts that are as near to each other as this are one
PLAIN: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Course:
    """What steps of each depth would accept, wherever on a text they begin.

    Args:
        text: T tokens.
        offered: how deep candidates go there at most, [T].
        survival: by the depth that a step may have, P(A >= k | text, place), [T][depth + 1].
    """

    text: Text
    offered: Sequence[int]
    survival: Mapping[int, Sequence[Sequence[float]]]

    def at(self, place: int, depth: int) -> Sequence[float]:
        """Return P(A >= 0), P(A >= 1), ... of a step; of one without candidates that is (1,)."""
        depth = min(depth, self.offered[place])
        return self.survival[depth][place][: depth + 1] if depth > 0 else PLAIN


def courses_of(parts: Mapping[int, Sequence[Replayed]]) -> list[Course]:
    """Take the courses of texts from chains of each depth, as they were replayed in closed form."""
    deepest = parts[max(parts)]
    found: list[Course] = []
    for number, part in enumerate(deepest):
        rows = {depth: several[number].survival.tolist() for depth, several in parts.items()}
        offered = part.drafted.tolist()
        for place, text in enumerate(part.texts):
            survival = {depth: row[place] for depth, row in rows.items()}
            found.append(Course(text, offered[place], survival))
    return found


def courses_along(
    texts: Sequence[Text], proposer: Proposer, vocab_size: int, sampling: Sampling
) -> list[Course]:
    """Ask a proposer at every place of texts; they decide on its candidates, which are chains."""
    longest = max((len(text.prompt_ids) + text.budget for text in texts), default=1)
    proposer.open(1, longest + proposer.max_depth + 1, vocab_size)
    return [_course_along(text, proposer, sampling) for text in texts]


def _course_along(text: Text, proposer: Proposer, sampling: Sampling) -> Course:
    flight = _flight(text, 0, sampling, 0)
    proposer.reset([flight.context()])
    offered: list[int] = []
    survival: list[list[float]] = []
    for place, token in enumerate(text.output_ids):
        contexts = [flight.context()]
        tree = proposer.propose(contexts)[0].tree
        assert tree.is_chain
        left = text.output_ids[place:]
        right = 0
        for drafted, own in zip(tree.token_ids[1:], left, strict=False):
            if drafted != own:
                break
            right += 1
        offered.append(tree.num_draft_tokens)
        survival.append([1.0] * (right + 1) + [0.0] * (proposer.max_depth - right))
        flight.token_ids.append(token)
        proposer.update(contexts, [Verdict((), token, Outcome.RECOVERED)])
    return Course(text, offered, dict.fromkeys(range(1, proposer.max_depth + 1), survival))


@dataclass
class _Played:
    """A text on its way."""

    flight: Flight
    course: Course

    def step(self, context: Context, depth: int) -> tuple[Proposal, Verdict]:
        """Let chance decide, and go on by what is accepted."""
        flight, text = self.flight, self.course.text
        place = len(flight.token_ids) - context.num_prompt_tokens
        survival = self.course.at(place, min(depth, context.max_depth))
        drafted = len(survival) - 1
        chance = context.verify_stream.uniform()
        accepted = sum(chance < each for each in survival[1:])
        emitted = text.output_ids[place : place + accepted + 1]
        ended = len(emitted) <= accepted
        refused = accepted < drafted and not ended
        outcome = Outcome.RECOVERED if refused else Outcome.BONUS
        flight.token_ids += emitted
        if place + len(emitted) == len(text.output_ids):
            flight.finish_reason = text.finish_reason
        shown = Outcome.ENDED if ended else outcome
        flight.steps.append(Step(drafted, drafted, accepted, len(emitted), shown, (), None))
        tree = CandidateTree.chain(emitted[0], [0] * drafted)
        return Proposal(tree), Verdict(tuple(range(1, accepted + 1)), emitted[-1], outcome)


@dataclass
class Player:
    """Plays decoding along texts, a batch of them in flight.

    Args:
        costs: what steps take.
        draft: whose steps.
        sampling: of the texts.
        grows: whether candidates are drafted level by level, rather than copied all at once.
        seed: of what is accepted.
    """

    costs: Costs
    draft: ProposerKey
    sampling: Sampling
    grows: bool
    seed: int = 0
    _known: dict[tuple[int, int, int], Seconds] = field(
        default_factory=dict[tuple[int, int, int], Seconds]
    )

    def play(self, courses: Sequence[Course], pace: Pace, max_depth: int) -> list[Trace]:
        """Return a trace of each text, with the seconds of its steps."""
        batch = int(self.costs.circumstances.get("batch") or 1)
        waiting, in_flight = deque(courses), list[_Played]()
        pace.open(max_depth)
        traces: list[Trace] = []
        while waiting or in_flight:
            free = sorted({*range(batch)} - {each.flight.row for each in in_flight})
            for row in free[: len(waiting)]:
                course = waiting.popleft()
                flight = _flight(course.text, row, self.sampling, self.seed)
                in_flight.append(_Played(flight, course))
            self._step(in_flight, pace)
            traces += [e.flight.trace("") for e in in_flight if e.flight.finish_reason]
            in_flight = [each for each in in_flight if not each.flight.finish_reason]
        return traces

    def _step(self, in_flight: Sequence[_Played], pace: Pace) -> None:
        contexts = [each.flight.context() for each in in_flight]
        lengths = [len(each.token_ids) for each in contexts]
        depths = pace.depths(contexts)
        rows = zip(in_flight, contexts, depths, strict=True)
        made = [each.step(context, depth) for each, context, depth in rows]
        proposals, verdicts = [pair[0] for pair in made], [pair[1] for pair in made]
        drafted = max(each.tree.num_draft_tokens for each in proposals)
        levels = max(depths) if self.grows else drafted
        found = self._seconds(drafted, levels, sum(lengths) / len(lengths) - 1)
        for each in in_flight:
            each.flight.steps[-1] = replace(
                each.flight.steps[-1],
                propose_seconds=found.propose,
                verify_seconds=found.verify,
                other_seconds=found.other,
            )
        whole = {name: len(in_flight) * value for name, value in found._asdict().items()}
        pace.learn(contexts, proposals, verdicts, whole)

    def _seconds(self, drafted: int, levels: int, context: float) -> Seconds:
        """Return a request's share of a step, which all of a batch take alike."""
        key = drafted, levels, round(context / NEAR)
        if key not in self._known:
            parents = (1,) * levels if self.grows else ()
            shape = TreeShape(drafted + 1, False, parents)
            self._known[key] = self.costs.of_step(self.draft, shape, key[2] * NEAR)
        return self._known[key]


def _flight(text: Text, row: int, sampling: Sampling, seed: int) -> Flight:
    request = Request(text.prompt_id, text.prompt_ids, text.category, text.turn, sample=text.sample)
    # The text itself says where it ends, also at a stop string.
    return Flight(request, row, sampling, Stopping(text.budget), seed, text.budget)

"""The columns of a tally: their names, and what the steps of one text add to each."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from specdec.core.outcome import Outcome
from specdec.core.trace import PlainSteps, Step, Trace

REACHED, AT_RISK, JUDGED, FINISHED = "reached.", "at_risk.", "judged.", "finished."
KNOWN, GAINED = "known.", "gained."
EXPERTS, EXPERTS_AT, COUNTED_AT = "experts", "experts_at.", "counted_at."
CLOCK, CLOCKED = "clock.", "clocked."
PLAIN = ("num_steps", "verify_seconds", "decode_seconds")  # of a clock's steps
OWN = ("num_steps", "propose_seconds", "decode_seconds")  # of the arm's own beside them
LEARN = "learn_seconds"  # of runs whose proposer learns
LARGEST = "largest_drafted"  # the one column that is not a sum


def counted(trace: Trace) -> dict[str, float]:
    """Add up the steps of one text."""
    steps = trace.steps
    return {
        "num_turns": 1,
        f"{FINISHED}{trace.finish_reason}": 1,
        "prefill_seconds": trace.prefill_seconds,
        "num_steps": len(steps),
        **{name: sum(map(count, steps)) for name, count in COUNTS.items()},
        LARGEST: max((step.drafted for step in steps), default=0),
        **_optional("expected_accepted", [step.expected_accepted for step in steps]),
        **_optional("draft_calls", [step.draft_calls for step in steps]),
        **_reread(steps),
        **_learned(steps),
        **_judged(steps),
        **_experts(steps),
        **_by_depth(REACHED, [step.accepted for step in steps], steps),
        **_by_depth(AT_RISK, [_depth_at_risk(step) for step in steps], steps),
    }


def _reread(steps: Sequence[Step]) -> dict[str, float]:
    """Share the forwards' seconds out over their tokens; nothing where none can be read again."""
    known = [(step, step.reread) for step in steps if step.reread is not None]
    seconds = [s.verify_seconds * again / (again + s.drafted + 1) for s, again in known]
    return {"reread_seconds": sum(seconds)} if known else {}


def _learned(steps: Sequence[Step]) -> dict[str, float]:
    """Add up the seconds in which the proposer learned; nothing where it does not."""
    seconds = sum(step.learn_seconds for step in steps)
    return {LEARN: seconds} if seconds else {}


COUNTS: Mapping[str, Callable[[Step], float]] = {
    "num_emitted": lambda step: step.emitted,
    "num_accepted": lambda step: step.accepted,
    "num_drafted": lambda step: step.drafted,
    "num_drafts": lambda step: step.drafted > 0,
    "num_branched": lambda step: step.drafted != step.depth,
    "propose_seconds": lambda step: step.propose_seconds,
    "verify_seconds": lambda step: step.verify_seconds,
    "other_seconds": lambda step: step.other_seconds,
    "decode_seconds": lambda step: step.seconds,
    "overlap": lambda step: sum(step.overlap),
    "num_overlap": lambda step: len(step.overlap),
    "bound": lambda step: sum(step.bound),
    "num_bound": lambda step: len(step.bound),
    "total_variation": lambda step: sum(pair[0] for pair in step.divergence),
    "kl": lambda step: sum(pair[1] for pair in step.divergence),
    "num_divergence": lambda step: len(step.divergence),
}


def _optional(name: str, values: Sequence[float | None]) -> dict[str, float]:
    """Add up what is known, and count it."""
    known = [value for value in values if value is not None]
    return {name: sum(known), f"{KNOWN}{name}": len(known)}


def _judged(steps: Sequence[Step]) -> dict[str, float]:
    """Add up what judges said, and what they said beyond the deciding rule."""
    found: dict[str, float] = {}
    for name in steps[0].judged if steps else ():
        said = [(step.judged[name], step.expected_accepted) for step in steps]
        gains = [None if a is None or b is None else a - b for a, b in said]
        found |= _optional(f"{JUDGED}{name}", [judged for judged, _ in said])
        found |= _optional(f"{GAINED}{name}", gains)
    return found


def _experts(steps: Sequence[Step]) -> dict[str, float]:
    """Add up the experts of a layer, on average, over all steps and by what their forwards read."""
    counted = [step for step in steps if step.experts]
    found: dict[str, float] = {}
    for step in counted:
        mean = sum(step.experts) / len(step.experts)
        numbers = {EXPERTS: mean, f"{EXPERTS_AT}{step.forward_tokens}": mean}
        numbers |= {f"{KNOWN}{EXPERTS}": 1, f"{COUNTED_AT}{step.forward_tokens}": 1}
        for name, number in numbers.items():
            found[name] = found.get(name, 0) + number
    return found


def clocked(row: Mapping[str, float], plain: PlainSteps) -> dict[str, float]:
    """Set the steps of one text beside the plain steps that were timed with it."""
    return clock_columns(plain) | {f"{CLOCKED}{name}": row[name] for name in OWN}


def clock_columns(plain: PlainSteps) -> dict[str, float]:
    """Return the sums of plain steps under their names in a tally, for a whole text."""
    share = plain.stand_for / plain.num_steps
    return {f"{CLOCK}{name}": share * getattr(plain, name) for name in PLAIN}


def _depth_at_risk(step: Step) -> int:
    """Return the deepest d that was put to the test; every d above it was as well."""
    tested = step.accepted if step.outcome is Outcome.ENDED else step.depth
    return min(step.accepted + 1, tested)


def _by_depth(prefix: str, depths: Sequence[int], steps: Sequence[Step]) -> dict[str, float]:
    """Count the steps that got at least as deep as d, for d up to the deepest draft token."""
    deepest = max((step.depth for step in steps), default=0)
    exactly = Counter(depths)
    at_least = accumulate(exactly[depth] for depth in range(deepest, 0, -1))
    return {f"{prefix}{deepest - above}": number for above, number in enumerate(at_least)}

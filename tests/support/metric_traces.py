"""Traces made by hand: what a decoder would have written, with every number chosen."""

import random
from collections.abc import Sequence

from specdec.core.outcome import Outcome
from specdec.core.trace import PlainSteps, Step, Trace
from specdec.metrics import Tally


def make_step(
    accepted: int,
    depth: int,
    outcome: Outcome | None = None,
    drafted: int | None = None,
    overlap: tuple[float, ...] = (),
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0),  # propose, verify, other
    expected: float | None = None,
    bound: tuple[float, ...] = (),
    divergence: tuple[tuple[float, ...], ...] = (),
    judged: dict[str, float | None] | None = None,
) -> Step:
    """Make a step of a chain, or of a tree if `drafted` says so."""
    if outcome is None:
        outcome = Outcome.BONUS if accepted == depth else Outcome.RECOVERED
    return Step(
        drafted=depth if drafted is None else drafted,
        depth=depth,
        accepted=accepted,
        emitted=accepted if outcome is Outcome.ENDED else accepted + 1,
        outcome=outcome,
        overlap=overlap,
        draft_calls=depth,
        expected_accepted=expected,
        bound=bound,
        divergence=divergence,
        judged=judged or {},
        propose_seconds=seconds[0],
        verify_seconds=seconds[1],
        other_seconds=seconds[2],
    )


def make_trace(
    prompt_id: str, *steps: Step, turn: int = 0, prefill: float = 0.0, reason: str = "length"
) -> Trace:
    """Make a trace whose text is as long as its steps say."""
    output_ids = tuple(range(sum(step.emitted for step in steps)))
    return Trace(prompt_id, "any", turn, 7, output_ids, "text", reason, prefill, steps)


def clocked(traces: Sequence[Trace], plain: Sequence[Trace]) -> Tally:
    """Add up traces beside which other ones, without candidates, were timed."""
    return Tally.of(traces, [PlainSteps.of(trace) for trace in plain])


def paced(cost: float, num_prompts: int, noise: float = 0.0, seed: int = 0) -> Tally:
    """Make an arm whose steps take `cost` plain steps; both kinds of steps are noisy."""
    rng = random.Random(seed)

    def timed(seconds: float, accepted: int, depth: int) -> Step:
        return make_step(accepted, depth, seconds=(0.0, seconds * rng.lognormvariate(0, noise), 0))

    names = [f"p{number}" for number in range(num_prompts)]
    own = [make_trace(n, *(timed(cost, rng.randint(0, 2), 2) for _ in range(20))) for n in names]
    return clocked(own, [make_trace(n, *(timed(1.0, 0, 0) for _ in range(5))) for n in names])


def example() -> list[Trace]:
    """Two prompts, five steps of chains of three.

    A        3 1 0 | 2 1   sum  7
    emitted  4 2 1 | 3 1   sum 11 (the text of the second prompt ends within the accepted tokens)
    """
    ended = make_step(1, 3, Outcome.ENDED)
    return [
        make_trace("a", make_step(3, 3), make_step(1, 3), make_step(0, 3)),
        make_trace("b", make_step(2, 3), ended, reason="eos"),
    ]


def random_traces(
    num_prompts: int, num_steps: int, depth: int, seed: int, ended: bool = False
) -> list[Trace]:
    """Make chains of equal depth; prompts differ in how easy they are, steps in their seconds."""
    rng = random.Random(seed)
    traces: list[Trace] = []
    for index in range(num_prompts):
        ease = rng.uniform(0.3, 0.9)
        steps: list[Step] = []
        for _ in range(num_steps):
            accepted = next((d for d in range(depth) if rng.random() > ease), depth)
            seconds = (rng.uniform(0.1, 0.2), rng.uniform(0.9, 1.1), 0.01)
            steps.append(make_step(accepted, depth, overlap=(ease,), seconds=seconds))
        if ended:
            steps.append(make_step(rng.randint(1, depth), depth, Outcome.ENDED))
        traces.append(make_trace(f"prompt-{index}", *steps, prefill=0.5))
    return traces

"""Arms that decode the same prompts in turns, and what came of it on the texts all of them have."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specdec.core.errors import UserError
from specdec.core.trace import PlainSteps, Trace
from specdec.lab.arm import Arm
from specdec.lab.paired_results import paired_tallies, paired_traces, summarize_paired
from specdec.lab.shortfall import Shortfall
from specdec.metrics import Tally
from specdec.prompts import Prompt
from specdec.results.flat import Frame, by_arm
from specdec.results.progress import Progress


@dataclass(frozen=True)
class Comparison:
    """What arms came to; each mapping is by the name of an arm.

    Args:
        arms: what was compared.
        num_prompts: that were to be decoded.
        traces: of all that an arm decoded.
        tallies: sums over the texts that all arms finished, as all that follows.
        clock: the plain steps that speed is held against.
        summaries: metrics, each with its interval; none, if no text is common.
        shortfalls: prompts that were left out or cut.
        cut_short: what ended it too soon; None: nothing did.
    """

    arms: Sequence[Arm]
    num_prompts: int
    traces: Mapping[str, Sequence[Trace]]
    tallies: Mapping[str, Tally]
    clock: Sequence[PlainSteps]
    summaries: Mapping[str, dict[str, Any]]
    shortfalls: Mapping[str, Shortfall]
    cut_short: KeyboardInterrupt | UserError | None

    def table(self) -> Frame:
        """Return a row for each arm: its metrics, each with `_low`, `_high` and `_n` behind it."""
        return by_arm(self.summaries)

    @property
    def num_done(self) -> int:
        """Prompts that all arms finished."""
        return min((each["num_prompts"] for each in self.summaries.values()), default=0)


def compete(
    arms: Sequence[Arm],
    prompts: Sequence[Prompt],
    size: int,
    reference: str | None = None,
    keep: Callable[[Arm, Trace], None] = lambda arm, trace: None,
) -> Comparison:
    """Let the arms decode in turns; what is there when that is interrupted counts, too.

    Args:
        arms: with unlike names, of one verifier.
        prompts: in order.
        size: how many prompts an arm decodes before it is the next one's turn.
        reference: the arm that the others are compared with; None: the best.
        keep: is handed each text as soon as it is there.
    """
    traces: dict[str, list[Trace]] = {arm.name: [] for arm in arms}
    cut_short: KeyboardInterrupt | UserError | None = None
    try:
        for arm, trace in interleave(arms, prompts, size):
            traces[arm.name].append(trace)
            keep(arm, trace)
    except (KeyboardInterrupt, UserError) as error:
        cut_short = error
    paired = paired_traces(traces)
    tallies, clock = paired_tallies(arms, paired)
    summaries = summarize_paired(arms, paired, tallies, reference)
    short = {arm.name: Shortfall.of(arm, prompts, paired[arm.name]) for arm in arms}
    for name, summary in summaries.items():
        summary |= short[name].counts()
    number = len({prompt.prompt_id for prompt in prompts})
    return Comparison(arms, number, traces, tallies, clock, summaries, short, cut_short)


def expect(arms: Sequence[Arm], prompts: Sequence[Prompt]) -> None:
    """Tell models that choose how they run what all arms together will write."""
    for arm in arms:
        arm.decoder.expect(len(arms) * sum(prompt.num_turns for prompt in prompts))


def interleave(
    arms: Sequence[Arm], prompts: Sequence[Prompt], size: int
) -> Iterator[tuple[Arm, Trace]]:
    """Let all arms decode the same few prompts, then the next few; another arm begins each time.

    So a machine that slows down or speeds up does so for every arm.
    """
    looked_at = arms[0].looked_at(prompts)
    for arm in arms:
        arm.warm_up(prompts[0])
    turns = sum(prompt.num_turns for prompt in prompts)
    with Progress(turns * len(arms), "decode", "text") as bar:
        for number, start in enumerate(range(0, len(prompts), size)):
            first = number % len(arms)
            for arm in [*arms[first:], *arms[:first]]:
                bar.on(arm.name)
                for trace in arm.decode(prompts[start : start + size], looked_at):
                    bar.update()
                    yield arm, trace

"""What arms that took turns come to, on the texts that all of them finished."""

from collections.abc import Mapping, Sequence
from typing import Any

from specdec.core.trace import PlainSteps, TextKey, Trace
from specdec.lab.arm import Arm
from specdec.lab.arm_results import summary_of
from specdec.metrics import Tally
from specdec.report.comparison import standings


def paired_tallies(
    competing: Sequence[Arm], paired: Mapping[str, Sequence[Trace]]
) -> tuple[dict[str, Tally], list[PlainSteps]]:
    """Add up each arm on the texts that all arms finished; the clock is the arm without drafts."""
    baseline = baseline_of(competing)
    clock = [] if baseline is None else [PlainSteps.of(trace) for trace in paired[baseline]]
    return {name: Tally.of(each, clock) for name, each in paired.items()}, clock


def summarize_paired(
    competing: Sequence[Arm],
    paired: Mapping[str, Sequence[Trace]],
    tallies: Mapping[str, Tally],
    reference: str | None,
) -> dict[str, dict[str, Any]]:
    """Summarize each arm, and say how it stands to the others; nothing, if no prompt is common."""
    if not any(paired.values()):
        return {}
    summaries = {arm.name: summary_of(arm, tallies[arm.name]) for arm in competing}

    def pairing(first: str, second: str) -> tuple[Tally, Tally]:
        return tallies[first], tallies[second]

    stand = standings(summaries, reference, pairing)
    baseline = baseline_of(competing)
    for name, summary in summaries.items():
        summary |= stand[name]
        if baseline is not None:
            greedy = competing[0].is_greedy
            summary["same_text"] = same_text(paired[name], paired[baseline]) if greedy else None
    return summaries


def baseline_of(competing: Sequence[Arm]) -> str | None:
    """Name the arm that proposes nothing, if there is one."""
    return next((arm.name for arm in competing if arm.proposes_nothing), None)


def paired_traces(traces: Mapping[str, Sequence[Trace]]) -> dict[str, list[Trace]]:
    """Return of each arm the texts that every arm has, in the order of the first one."""
    finished = common_turns(traces)
    return {
        name: sorted(
            (trace for trace in each if trace.key in finished),
            key=lambda trace: finished[trace.key],
        )
        for name, each in traces.items()
    }


def common_turns(traces: Mapping[str, Sequence[Trace]]) -> dict[TextKey, int]:
    """Number the texts that every arm has, in the order of the first arm."""
    ids = [[trace.key for trace in each] for each in traces.values()]
    shared = set(ids[0]).intersection(*ids[1:])
    return {turn: number for number, turn in enumerate(t for t in ids[0] if t in shared)}


def same_text(traces: Sequence[Trace], baseline: Sequence[Trace]) -> dict[str, int]:
    """Count the texts that are token for token those of the baseline."""
    equal = sum(a.output_ids == b.output_ids for a, b in zip(traces, baseline, strict=True))
    return {"equal": equal, "of": len(traces)}

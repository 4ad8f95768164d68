"""What of the prompts was not decoded, or not as a whole: counted, and named."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from specdec.core.trace import Trace, request_id
from specdec.decoding.turns import REFUSED, rendered
from specdec.lab.arm import Arm, answers_of
from specdec.prompts import Prompt

SHOWN = 5  # names in a line


@dataclass(frozen=True)
class Shortfall:
    """Ids of prompts that are left out, and of turns that were cut or got no answer."""

    skipped: Sequence[str]
    truncated: Sequence[str]
    unanswered: Sequence[str]
    refused: Sequence[str]

    @classmethod
    def of(cls, arm: Arm, prompts: Sequence[Prompt], traces: Sequence[Trace]) -> "Shortfall":
        """Look what became of an arm's prompts."""
        ended = [trace for trace in traces if not trace.output_ids]
        full = [_name(trace) for trace in ended if trace.finish_reason != REFUSED]
        refused = [_name(trace) for trace in ended if trace.finish_reason == REFUSED]
        return cls(arm.skipped, list(_truncated(arm, prompts, traces)), full, refused)

    def counts(self) -> dict[str, int]:
        """Return what a summary says of it."""
        return {
            "num_skipped": len(self.skipped),
            "num_truncated": len(self.truncated),
            "num_unanswered": len(self.unanswered) + len(self.refused),
        }

    def lines(self) -> Iterator[str]:
        """Say what there is to be said."""
        for names, of, what in (
            (self.skipped, "prompt", "too long and left out"),
            (self.truncated, "turn", "cut to the last tokens"),
            (self.unanswered, "turn", "without an answer, for want of room in the context"),
            (self.refused, "turn", "not asked, since the chat template refuses the answers before"),
        ):
            if names:
                number = f"{len(names)} {of}{'s' if len(names) > 1 else ''}"
                more = ", ..." if len(names) > SHOWN else ""
                yield f"{number} {what}: {', '.join(names[:SHOWN])}{more}"


def _truncated(arm: Arm, prompts: Sequence[Prompt], traces: Sequence[Trace]) -> Iterator[str]:
    """Name the texts whose prompt was cut; only what is as long as allowed is rendered again."""
    longest = arm.prompts.rendering.max_tokens
    by_key = {prompt.key: prompt for prompt in prompts}
    answers = answers_of(traces, arm.verifier)
    for trace in traces:
        if trace.num_prompt_tokens == longest:
            prompt, given = by_key[trace.prompt_key], answers[trace.prompt_key][: trace.turn]
            if rendered(prompt, given, arm.verifier, arm.prompts.rendering).num_cut:
                yield _name(trace)


def _name(trace: Trace) -> str:
    return request_id(trace.prompt_id, trace.turn, trace.sample)


def counted(shortfalls: Mapping[str, Shortfall]) -> Iterator[str]:
    """Say of several arms what there is to be said, once where they have it in common."""
    alike: dict[str, list[str]] = {}
    for name, shortfall in shortfalls.items():
        for line in shortfall.lines():
            alike.setdefault(line, []).append(name)
    for line, names in alike.items():
        yield line if len(names) == len(shortfalls) else f"{', '.join(names)}: {line}"

"""Paces for tests: adversaries that are allowed what a pace is allowed, and cheats that are not."""

from collections.abc import Callable, Mapping, Sequence

from specdec.core.values import Context, Proposal, Verdict


class Scripted:
    """Depths by a function of the contexts and of all that was accepted before."""

    def __init__(self, depth: Callable[[Context, int], int], min_confidence: float = 0.0) -> None:
        self.min_confidence = min_confidence
        self._depth = depth
        self._accepted: dict[str, int] = {}

    def open(self, max_depth: int) -> None:
        self._accepted = {}

    def depths(self, contexts: Sequence[Context]) -> list[int]:
        return [self._depth(each, self._accepted.get(each.request_id, 0)) for each in contexts]

    def learn(
        self,
        contexts: Sequence[Context],
        proposals: Sequence[Proposal],
        verdicts: Sequence[Verdict],
        seconds: Mapping[str, float],
    ) -> None:
        for context, verdict in zip(contexts, verdicts, strict=True):
            known = self._accepted.get(context.request_id, 0)
            self._accepted[context.request_id] = known + len(verdict.path)


def by_the_text(context: Context, accepted: int) -> int:
    """Choose as wilfully as the past allows: by every committed token, and by what was accepted."""
    return (3 * sum(context.token_ids) + len(context.token_ids) + accepted) % 3


def in_turns(context: Context, accepted: int) -> int:
    """Rest for two steps of three tokens."""
    return 3 if len(context.token_ids) % 3 == 0 else 0


def peeking_at_the_draft(context: Context, accepted: int) -> int:
    """Draft only if the number that draws the first token suits: not allowed."""
    return 2 if context.draft_stream.peek(1)[0] < 0.5 else 0


def peeking_at_the_verdict(context: Context, accepted: int) -> int:
    """Draft only if the number that decides on the first token suits: not allowed."""
    return 2 if context.verify_stream.peek(1)[0] < 0.5 else 0

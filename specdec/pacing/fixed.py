"""Every step drafts as deep as its proposer can."""

from collections.abc import Mapping, Sequence

from specdec.core.values import Context, Proposal, Verdict


class Fixed:
    """The length that `tree` says, at every step."""

    min_confidence = 0.0

    def open(self, max_depth: int) -> None:
        """Learn how deep that is."""
        self._max_depth = max_depth

    def depths(self, contexts: Sequence[Context]) -> list[int]:
        """Return the same for all."""
        return [self._max_depth] * len(contexts)

    def learn(
        self,
        contexts: Sequence[Context],
        proposals: Sequence[Proposal],
        verdicts: Sequence[Verdict],
        seconds: Mapping[str, float],
    ) -> None:
        """Nothing to learn."""

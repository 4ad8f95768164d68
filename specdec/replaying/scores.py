"""The answers to all `Question`s along one batch of texts."""

from collections.abc import Sequence

from torch import Tensor

from specdec.replaying.places import Drawn, Places
from specdec.replaying.questions import Question, log_ratio_of, noted_of
from specdec.replaying.survival import ahead, behind


class Scores:
    """The answers, by question and depth."""

    def __init__(self, num_depths: int | None):
        self._num_depths = num_depths
        self._answers: dict[tuple[Question, int], Tensor] = {}
        self._confidence: dict[int, Tensor] = {}

    def answer(self, questions: Sequence[Question], depth: int, places: Places) -> None:
        """Note the answers at a depth, temperature by temperature; one after another, since some
        build on those before."""
        temperatures = dict.fromkeys(question.drawn.temperature for question in questions)
        for temperature in temperatures:
            for question in questions:
                if question.drawn.temperature != temperature:
                    continue
                if question.needs_p and question.may_stay_open and not places.knows_p:
                    continue
                answer = question.answer(places)
                if answer is not None:
                    self._answers[question, depth] = answer.view(*places.shape, -1)

    def note_confidence(self, depth: int, confidence: Tensor) -> None:
        """Note the largest probability [B, T] of the draft there, at temperature 1."""
        self._confidence[depth] = confidence

    def at(self, question: Question, depth: int) -> Tensor:  # [B, T, K]
        """Return an answer about the tokens at `depth` of a step that begins at each place.

        One distribution for all depths is that of the token itself.
        """
        if self._num_depths is None:
            return ahead(self._answers[question, 1], depth)
        return self._answers[question, depth]

    def known(self, question: Question | None, depth: int) -> Tensor | None:  # [B, T, K]
        """Return an answer, if it was asked for and could be given."""
        place = 1 if self._num_depths is None else depth
        if question is None or (question, place) not in self._answers:
            return None
        return self.at(question, depth)

    def log_ratios(self, drawn: Drawn) -> list[Tensor]:  # of [B, T]
        """Return log q/p of the tokens of a chain down to a depth, where its answer will stand."""
        return [each[..., 0] for each in self._along(log_ratio_of(drawn), drawn.depth)]

    def notes(self, drawn: Drawn) -> list[Tensor]:  # of [B, T, m]
        """Return what a form noted of these tokens, if it does."""
        return [] if drawn.note is None else self._along(noted_of(drawn, drawn.note), drawn.depth)

    def _along(self, question: Question, depth: int) -> list[Tensor]:  # of [B, T, K]
        answers = [self.at(question, above) for above in range(1, depth + 1)]
        if self._num_depths is None:
            return [behind(answer, depth) for answer in answers]
        return answers

    def is_confident(self, threshold: float, depth: int) -> Tensor:  # [B, T] bool
        """Return whether drafting goes on to a depth."""
        if self._num_depths is None:
            return ahead(self._confidence[1], depth) >= threshold
        return self._confidence[depth] >= threshold

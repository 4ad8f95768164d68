"""What arms want to know of the laws along a text: asked once, however many arms want it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from specdec.core.values import Draw
from specdec.replay.arm import CHAINS, LIMITED, Arm
from specdec.replay.survival import ahead, behind, clipped
from specdec.tree.filtered import Filtered

NEED_ROWS = {"rejection", "kseq"}  # of p, at nodes with several draws
TOLD = {"passes", "passes block", "ended", "stuck"}  # the same; without p nothing is told


@dataclass(frozen=True)
class Question:
    """What is computed once for all arms that ask it: shares, or for blocks log ratios."""

    # ranks, ratio, match, block, or a rule on siblings. Of candidates that are submitted: support,
    # how many tokens q has; passes and passes block: see `shares`; passes match, the same where the
    # verifier's draw decides; ended and stuck: see `specdec.replay.ended`; likeliest, the tokens
    # of candidates that are all known.
    kind: str
    draw: Draw
    width: int
    temperature: float | None
    passing: tuple[float, int] | None = None  # FILTERED: least probability, and top-k
    depth: int = 0  # where the answer depends on the tokens above: how deep
    rule: str = ""  # ended, stuck: whose refusals
    inner: tuple[int, ...] = ()  # stuck: which children of the root have children

    @classmethod
    def of(cls, arm: Arm, depth: int) -> "Question":
        """Say what an arm wants to know at a depth."""
        tree, draw = arm.tree, arm.tree.draw
        width = arm.width(depth)
        if draw is Draw.DETERMINISTIC:
            return cls("ranks", draw, width, None)
        if draw in (Draw.SINGLE, Draw.FILTERED):
            passing = tree.passing if isinstance(tree, Filtered) else None
            return cls(CHAINS[arm.rule], Draw.SINGLE, 1, arm.temperature, passing)
        return cls(arm.rule, draw, width, arm.temperature)

    @classmethod
    def of_submitted(cls, arm: Arm, depth: int) -> "Question | None":
        """Say what an arm wants to know of the candidates that are submitted; None: nothing."""
        tree = arm.tree
        if tree.draw in LIMITED:
            return cls("support", tree.draw, 1, arm.temperature)
        if not isinstance(tree, Filtered):
            return None
        told = CHAINS[arm.rule]
        if told == "block" and depth > 1:
            kind = "passes block"
            return cls(kind, Draw.SINGLE, 1, arm.temperature, tree.passing, depth)
        kind = "passes match" if told == "match" else "passes"
        return cls(kind, Draw.SINGLE, 1, arm.temperature, tree.passing)

    @classmethod
    def of_ends(cls, arm: Arm, depth: int) -> "Question | None":
        """Say what tells an arm which candidates end a text; None: nothing does."""
        tree = arm.tree
        if depth == tree.max_depth or tree.draw is Draw.FILTERED:
            return None
        if tree.draw is Draw.DETERMINISTIC:
            return cls("likeliest", tree.draw, arm.width(depth), None)
        if tree.max_depth > 2:
            return None  # what is drawn beside the text is known right behind the text alone
        rule = arm.rule if arm.rule in ("match", "kseq") else "rejection"
        return cls("ended", tree.draw, arm.width(depth), arm.temperature, rule=rule)

    @classmethod
    def of_stuck(cls, arm: Arm, depth: int) -> "Question | None":
        """Say what tells an arm how often all candidates with children end a text."""
        ended, inner = cls.of_ends(arm, depth), arm.inner
        if ended is None or ended.kind != "ended" or len(inner) == ended.width:
            return None
        return replace(ended, kind="stuck", inner=inner)

    @property
    def needs_rows(self) -> bool:
        """Whether p is wanted of tokens that the text does not have."""
        siblings = self.draw is not Draw.SINGLE and self.kind in NEED_ROWS
        return siblings or (self.kind in TOLD and self.rule != "match")


def questions(arms: Sequence[Arm], num_depths: int | None, ends: bool) -> dict[int, list[Question]]:
    """List what is asked at each depth, by all arms; at depth 1 alone if that serves all."""
    found: dict[int, dict[Question, None]] = {}
    for arm in arms:
        for depth in range(1, arm.tree.max_depth + 1):
            place = 1 if num_depths is None else depth
            asked = [Question.of(arm, depth), Question.of_submitted(arm, depth)]
            if ends:
                asked += [Question.of_ends(arm, depth), Question.of_stuck(arm, depth)]
            found.setdefault(place, {}).update({each: None for each in asked if each is not None})
    return {depth: list(questions) for depth, questions in found.items()}


class Scores:
    """The answers along one batch of texts, by question and depth."""

    def __init__(self, num_depths: int | None):
        self._num_depths = num_depths
        self._found: dict[tuple[Question, int], Tensor] = {}
        self._sure: dict[int, Tensor] = {}

    def add(self, question: Question, depth: int, answer: Tensor) -> None:
        """Note [B, T, K] of the tokens at `depth` of a step at each place."""
        self._found[question, depth] = answer

    def note_confidence(self, depth: int, confidence: Tensor) -> None:
        """Note the largest probability [B, T] of the law there, at temperature 1."""
        self._sure[depth] = confidence

    def at(self, question: Question, depth: int) -> Tensor:  # [B, T, K]
        """Return an answer; one law for all depths is the law of the token itself."""
        if self._num_depths is None:
            return ahead(self._found[question, 1], depth)
        return self._found[question, depth]

    def told(self, question: Question | None, depth: int) -> Tensor | None:  # [B, T, K]
        """Return an answer, if it was asked for and could be given."""
        place = 1 if self._num_depths is None else depth
        if question is None or (question, place) not in self._found:
            return None
        return self.at(question, depth)

    def clipped(self, question: Question) -> Tensor:  # [B, T]
        """Return `Block`'s c above the depth of a question, where its answer will stand."""
        block = replace(question, kind="block", depth=0)
        c = clipped([self.at(block, depth)[..., 0] for depth in range(1, question.depth)])
        return behind(c, question.depth) if self._num_depths is None else c

    def confident(self, threshold: float, depth: int) -> Tensor:  # [B, T] bool
        """Return whether drafting goes on to a depth."""
        if self._num_depths is None:
            return ahead(self._sure[1], depth) >= threshold
        return self._sure[depth] >= threshold

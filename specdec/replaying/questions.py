"""What arms want to know of the distributions along a text: asked once, however many arms want it.

A question holds all that decides its answer, so equal questions of several arms are one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core.closed_form import ClosedForm, Ends, Note, Passes
from specdec.core.ordering import likeliest, ranks_of
from specdec.core.values import Draw
from specdec.replaying.arm import LIMITED, ClosedArm
from specdec.replaying.places import Drawn, Places


@dataclass(frozen=True)
class Question(ABC):
    """What is computed once for all arms that ask it: K numbers at each of n places."""

    drawn: Drawn  # how the candidates are, if they are

    @property
    def needs_p(self) -> bool:
        """Whether p is wanted of tokens that the text does not have."""
        return False

    @property
    def may_stay_open(self) -> bool:
        """Whether an arm is replayed all the same where p is not known, with fewer counters."""
        return False

    @abstractmethod
    def answer(self, places: Places) -> Tensor | None:  # [n, K]
        """Compute it; None: no closed form is known after all."""


@dataclass(frozen=True)
class Ranks(Question):
    """Which of the likeliest tokens the text's is: the shares of candidates that are certain."""

    width: int

    def answer(self, places: Places) -> Tensor:
        """Return 1 for the candidate that bears the text's token."""
        ranks = ranks_of(places.logits.float(), places.token_ids)
        return (ranks[:, None] == torch.arange(self.width, device=ranks.device)).double()


@dataclass(frozen=True)
class Likeliest(Question):
    """Which tokens the candidates bear that are certain."""

    width: int

    def answer(self, places: Places) -> Tensor:
        """Return token ids."""
        return likeliest(places.logits.float(), self.width)


@dataclass(frozen=True)
class Support(Question):
    """How many tokens q has."""

    def answer(self, places: Places) -> Tensor:
        """Count them."""
        return (places.q(self.drawn) > 0).sum(dim=-1, keepdim=True)


@dataclass(frozen=True)
class LogRatio(Question):
    """The log of q/p of the text's token, -inf where q is 0, for rules that judge whole chains."""

    def answer(self, places: Places) -> Tensor:
        """Return float64."""
        nodes = places.nodes(self.drawn, 1, needs_p=False)
        return (nodes.of_text(nodes.q).double().log() - nodes.log_p)[:, None]


@dataclass(frozen=True)
class Noted(Question):
    """What a rule notes of each place, for those where the text goes on."""

    note: Note

    @property
    def needs_p(self) -> bool:
        """Always."""
        return True

    def answer(self, places: Places) -> Tensor:
        """Ask the rule."""
        return self.note(places.nodes(self.drawn, 1, needs_p=True))


@dataclass(frozen=True)
class Shares(Question):
    """How likely each child is to be the accepted one, given the text."""

    form: ClosedForm
    width: int

    @property
    def needs_p(self) -> bool:
        """As the rule says."""
        return self.form.needs_p

    def answer(self, places: Places) -> Tensor:
        """Ask the rule."""
        return self.form.shares(places.nodes(self.drawn, self.width, self.needs_p)).double()


@dataclass(frozen=True)
class _OfSubmitted(Question):
    """What tells how many candidates there are."""

    @property
    def may_stay_open(self) -> bool:
        """Acceptance does not depend on it."""
        return True


@dataclass(frozen=True)
class Passed(_OfSubmitted):
    """How likely the drawn token of a filtered chain is to be submitted, given the text."""

    passes: Passes

    @property
    def needs_p(self) -> bool:
        """As the rule says."""
        return self.passes.needs_p

    def answer(self, places: Places) -> Tensor:
        """Ask the rule."""
        return self.passes.of(places.nodes(self.drawn, 1, self.needs_p))[:, None]


@dataclass(frozen=True)
class Ended(_OfSubmitted):
    """How likely each child is to end the text, given what that goes on with."""

    ends: Ends
    width: int

    @property
    def needs_p(self) -> bool:
        """As the rule says."""
        return self.ends.needs_p

    def answer(self, places: Places) -> Tensor | None:
        """Ask the rule."""
        nodes = places.nodes(self.drawn, self.width, self.needs_p)
        return self.ends.ended(nodes, places.is_end)


@dataclass(frozen=True)
class Stuck(Ended):
    """How likely a child is to be accepted while all children with children end the text."""

    inner: tuple[int, ...]  # the children with children

    def answer(self, places: Places) -> Tensor | None:
        """Ask the rule."""
        nodes = places.nodes(self.drawn, self.width, self.needs_p)
        stuck = self.ends.stuck(nodes, places.is_end, self.inner)
        return None if stuck is None else stuck[:, None]


def of_acceptance(arm: ClosedArm, depth: int) -> Question:
    """Ask for the shares of an arm's candidates at a depth."""
    if arm.tree.draw is Draw.DETERMINISTIC:
        return Ranks(Drawn(None), arm.width(depth))
    return Shares(_drawn(arm, depth), arm.form, arm.width(depth))


def of_submitted(arm: ClosedArm, depth: int) -> Question | None:
    """Ask which candidates of an arm are submitted at a depth; None: all of them."""
    if arm.tree.draw in LIMITED:
        return Support(Drawn(arm.temperature))
    if arm.tree.draw is not Draw.FILTERED or arm.form.passes is None:
        return None
    return Passed(_drawn(arm, depth), arm.form.passes)


def of_ends(arm: ClosedArm, depth: int) -> Ended | Likeliest | None:
    """Ask which candidates of an arm end a text; None: nothing tells it."""
    tree = arm.tree
    if depth == tree.max_depth or tree.draw is Draw.FILTERED:
        return None
    if tree.draw is Draw.DETERMINISTIC:
        return Likeliest(Drawn(None), arm.width(depth))
    if tree.max_depth > 2 or arm.form.ends is None:
        return None  # what is drawn beside the text is known right behind the text alone
    return Ended(Drawn(arm.temperature), arm.form.ends, arm.width(depth))


def of_stuck(arm: ClosedArm, depth: int) -> Stuck | None:
    """Ask how often all candidates with children end a text."""
    ended, inner = of_ends(arm, depth), arm.inner
    if not isinstance(ended, Ended) or len(inner) == ended.width:
        return None
    return Stuck(ended.drawn, ended.ends, ended.width, inner)


def _drawn(arm: ClosedArm, depth: int) -> Drawn:
    if not arm.form.reads_path:
        return Drawn(arm.temperature, arm.passing)
    note = arm.form.note
    return Drawn(arm.temperature, arm.passing, depth, note, arm.width(1) if note else 1)


def log_ratio_of(drawn: Drawn) -> LogRatio:
    """Ask for what `TextNodes.log_ratios` is made of."""
    return LogRatio(Drawn(drawn.temperature, drawn.passing))


def noted_of(drawn: Drawn, note: Note) -> Noted:
    """Ask for what `TextNodes.notes` is made of."""
    return Noted(Drawn(drawn.temperature, drawn.passing, num_paths=drawn.num_paths), note)


def questions(
    arms: Sequence[ClosedArm], num_depths: int | None, ends: bool
) -> dict[int, list[Question]]:
    """List what is asked at each depth, by all arms; at depth 1 alone if that serves all."""
    wanted: dict[int, dict[Question, None]] = {}
    for arm in arms:
        for depth in range(1, arm.tree.max_depth + 1):
            place = 1 if num_depths is None else depth
            several = [of_acceptance(arm, depth), of_submitted(arm, depth)]
            drawn = several[0].drawn
            if drawn.depth:  # the answer builds on these, which come first
                several.insert(0, log_ratio_of(drawn))
                several.insert(0, drawn.note and noted_of(drawn, drawn.note))
            if ends:
                several += [of_ends(arm, depth), of_stuck(arm, depth)]
            wanted.setdefault(place, {}).update({each: None for each in several if each})
    return {depth: list(several) for depth, several in wanted.items()}

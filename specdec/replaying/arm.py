"""What replay in closed form can compute: a fixed tree and a rule."""

from dataclasses import dataclass, replace
from functools import cached_property

from specdec.core.closed_form import ClosedForm
from specdec.core.errors import Unfit, UserError
from specdec.core.plug_ins import is_ours, plug_in_name
from specdec.core.protocols import ReplayableRule, VerificationRule
from specdec.core.sampling import Sampling
from specdec.core.values import Draw
from specdec.proof.replayable import flaw_of_form, flaw_of_text
from specdec.tree.filtered import Filtered
from specdec.tree.fixed import FixedTree

LIMITED = {Draw.WITHOUT_REPLACEMENT, Draw.TOP_PLUS_ONE}  # no more children than q has tokens


@dataclass(frozen=True)
class ClosedArm:
    """A tree, and the rule that decides on it.

    Raises:
        Unfit: no closed form is known for this rule and these candidates.
    """

    tree: FixedTree
    rule: VerificationRule
    temperature: float | None = None  # of the draft; None: the verifier's

    def __post_init__(self) -> None:
        draw = self.tree.draw
        certain = draw is Draw.DETERMINISTIC and is_decided_by_text(self.rule, draw)
        if not certain and closed_form_of(self.rule, draw) is None:
            raise Unfit(
                f"verification={name_of(self.rule)}: no closed form is known for {draw.value}"
                " candidates; decode them"
            )

    @cached_property
    def form(self) -> ClosedForm:
        """How the rule accepts candidates that are sampled."""
        form = closed_form_of(self.rule, self.tree.draw)
        assert form is not None
        return form

    @property
    def passing(self) -> tuple[float, int] | None:
        """The filter of the candidates, see `Filtered`; None: there is none."""
        return self.tree.passing if isinstance(self.tree, Filtered) else None

    @property
    def num_drafted(self) -> list[int]:
        """The nodes down to each depth, from 0, where all of them are submitted."""
        depths = [len(path) for path in self.tree.nodes]
        return [sum(d <= depth for d in depths) for depth in range(self.tree.max_depth + 1)]

    @property
    def inner(self) -> tuple[int, ...]:
        """The children of the root that have children."""
        return tuple(sorted({path[0] for path in self.tree.nodes if len(path) == 2}))

    def width(self, depth: int) -> int:
        """The most children at a depth."""
        return 1 + max(path[-1] for path in self.tree.nodes if len(path) == depth)

    def may_lack(self, sampling: Sampling) -> bool:
        """Whether a filter may leave a distribution fewer tokens than a node has children."""
        if self.tree.draw not in LIMITED:
            return False
        sampling = sampling.at(self.temperature)
        widest = 1 + max(path[-1] for path in self.tree.nodes)
        if sampling.temperature == 0 or sampling.top_p < 1 or sampling.min_p > 0:
            return widest > 1
        return 0 < sampling.top_k < widest


def closed_form_of(rule: VerificationRule, draw: Draw) -> ClosedForm | None:
    """Return how a rule accepts sampled candidates, given the text, if it says so.

    Raises:
        UserError: it is a rule from outside of the package, and enumeration shows otherwise.
    """
    if not (isinstance(rule, ReplayableRule) and _speaks_of_itself(rule, "closed_form")):
        return None
    form = rule.closed_form(draw)
    if form is None or _is_ours(type(rule)):
        return form
    flaw = flaw_of_form(rule, draw)
    if flaw is not None:
        raise UserError(f"verification={name_of(rule)}: its closed_form is wrong: {flaw}")
    if _is_ours(_defined_by(rule, "closed_form")):
        return form
    # The other fields are not enumerated, hence not believed: fewer counters are reported.
    return replace(form, passes=None, ends=None)


def is_decided_by_text(rule: VerificationRule, draw: Draw) -> bool:
    """Whether a rule accepts just those candidates that the text goes on with, if it says so.

    Raises:
        UserError: it is a rule from outside of the package, and enumeration shows otherwise.
    """
    if not (isinstance(rule, ReplayableRule) and _speaks_of_itself(rule, "decided_by_text")):
        return False
    if draw not in rule.decided_by_text:
        return False
    flaw = None if _is_ours(type(rule)) else flaw_of_text(rule, draw)
    if flaw is not None:
        raise UserError(f"verification={name_of(rule)}: its decided_by_text is wrong: {flaw}")
    return True


def _is_ours(kind: type) -> bool:
    return is_ours(kind.__module__)


def _defined_by(rule: VerificationRule, member: str) -> type:
    """Return the class that says it; an object that says it itself is of its own class."""
    kinds = (kind for kind in type(rule).__mro__ if member in vars(kind))
    return type(rule) if member in getattr(rule, "__dict__", {}) else next(kinds, type(rule))


def _speaks_of_itself(rule: VerificationRule, member: str) -> bool:
    """Whether no subclass has overridden what the member was said of."""
    if member in getattr(rule, "__dict__", {}):  # an attribute of its own
        return True
    lineage = type(rule).__mro__
    first = next(kind for kind in lineage if {"verify", "verify_all", member} & vars(kind).keys())
    return member in vars(first)


def name_of(rule: VerificationRule) -> str:
    """Return what the command line calls a rule of ours; of others the class."""
    return plug_in_name(f"{type(rule).__module__}.{type(rule).__qualname__}")

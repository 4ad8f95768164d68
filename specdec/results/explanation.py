"""How a text came about, step by step, told with the probabilities of both models."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from specdec.results.explanation_lines import lines_of

Fate = Literal["accepted", "refused", "out of reach"]


@dataclass(frozen=True)
class NamedPart:
    """A part by its name, and what it does in a sentence of its own."""

    name: str
    does: str


@dataclass(frozen=True)
class Token:
    """A token as text, quoted so that spaces and line ends are seen, and its number."""

    text: str
    token_id: int


@dataclass(frozen=True)
class Likely:
    """One of the likeliest tokens of a distribution."""

    text: str
    probability: float
    is_candidate: bool  # whether the proposer put it forward there


@dataclass(frozen=True)
class Outlook:
    """A place where a model said what may come next."""

    after: tuple[str, ...]  # draft tokens between the text and this place
    likely: tuple[Likely, ...]  # the likeliest first
    possible: int  # tokens that the distribution does not rule out


@dataclass(frozen=True)
class Candidate:
    """A draft token in the tree that the verifier reads; node 0 is the last token of the text."""

    node: int
    parent: int
    text: str
    draft: float | None  # q of it, given its parent; None: its proposer has no probabilities
    verifier: float  # p of it, given its parent
    fate: Fate


@dataclass(frozen=True)
class Decision:
    """A random decision of the rule: `number` is uniform in [0, 1)."""

    number: float
    chance: float | None  # of a yes, which is `number < chance`; None: a token is drawn by it
    answer: str  # yes, no, or the token


@dataclass(frozen=True)
class ExplainedStep:
    """One step: what was proposed, what the verifier said, and what was decided."""

    num_tokens: int  # of the text before, the prompt included
    before: str  # its end
    draft_calls: int | None  # forwards of the draft; None: the proposer does not say
    draft_says: tuple[Outlook, ...]  # where the draft was asked, as far as it has probabilities
    left_out: tuple[str, ...]  # the first candidates that were grown, and are not in the tree
    num_left_out: int
    withheld: bool  # whether a candidate that did not pass the filter ended the chain
    candidates: tuple[Candidate, ...]
    verifier_says: tuple[Outlook, ...]  # p after the text, and after each accepted token
    decisions: tuple[Decision, ...]
    accepted: tuple[str, ...]
    own: str  # the verifier's own token; "" where the text ended before
    own_kind: str  # recovered, bonus or ended
    expected_accepted: float | None  # what would be accepted on average
    overlap: float | None  # sum_v min(p, q) after the text

    @property
    def emitted(self) -> int:
        """Tokens that the step added."""
        return len(self.accepted) + bool(self.own)


@dataclass(frozen=True)
class Explanation:
    """A prompt, the parts that decoded it, and each of its steps.

    Args:
        prompt: as text.
        prompt_tokens: its tokens.
        verifier: the large model.
        proposer: what guessed.
        tree: what chose among the guesses; None: the proposer grows no tree.
        draw: how candidates were chosen, in words.
        rule: what decided.
        lossless: whether the text has the verifier's distribution.
        sampling: temperature and filters.
        steps: one for each forward of the verifier.
        text: what was written.
        finish_reason: eos, stop, length or context.
    """

    prompt: str
    prompt_tokens: tuple[Token, ...]
    verifier: str
    proposer: NamedPart
    tree: NamedPart | None
    draw: str
    rule: NamedPart
    lossless: bool
    sampling: str
    steps: tuple[ExplainedStep, ...]
    text: str
    finish_reason: str

    @property
    def num_emitted(self) -> int:
        """Tokens of the text."""
        return sum(step.emitted for step in self.steps)

    @property
    def block_efficiency(self) -> float | None:
        """Emitted tokens for each forward of the verifier."""
        return self.num_emitted / len(self.steps) if self.steps else None

    def __str__(self) -> str:
        """Return what `specdec-explain` prints."""
        return "\n".join(lines_of(self))

    def to_row(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Explanation":
        """Read what `to_row` wrote."""
        fields = dict(row)
        fields["prompt_tokens"] = tuple(Token(**each) for each in row["prompt_tokens"])
        for name in ("proposer", "rule", "tree"):
            fields[name] = None if row[name] is None else NamedPart(**row[name])
        fields["steps"] = tuple(_step(each) for each in row["steps"])
        return cls(**fields)


def _step(row: Mapping[str, Any]) -> ExplainedStep:
    fields = dict(row)
    for name in ("draft_says", "verifier_says"):
        fields[name] = tuple(_outlook(each) for each in row[name])
    fields["candidates"] = tuple(Candidate(**each) for each in row["candidates"])
    fields["decisions"] = tuple(Decision(**each) for each in row["decisions"])
    for name in ("accepted", "left_out"):
        fields[name] = tuple(row[name])
    return ExplainedStep(**fields)


def _outlook(row: Mapping[str, Any]) -> Outlook:
    likely = tuple(Likely(**each) for each in row["likely"])
    return Outlook(tuple(row["after"]), likely, row["possible"])

"""What decoding one prompt looked like: raw counts and seconds, from which every metric follows.

Record raw, derive late: `traces.jsonl` holds one of these a line, and no number in a report needs
a model to be computed again.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

from specdec.core.outcome import Outcome

PromptKey = tuple[str, int]  # prompt_id and sample
TextKey = tuple[str, int, int]  # prompt_id, sample and turn


def request_id(prompt_id: str, turn: int, sample: int = 0) -> str:
    """Name one turn of a sample of a prompt: what a request is called while it is decoded.

    The first of each goes without its number, so that sample 0 is what there is without samples.
    """
    sampled = prompt_id if sample == 0 else f"{prompt_id}~{sample}"
    return sampled if turn == 0 else f"{sampled}#{turn}"


@dataclass(frozen=True)
class Step:
    """One verifier forward, as one request saw it.

    With B requests in flight a step's seconds are shared out equally, so that the seconds of all
    traces add up to the wall time.
    """

    drafted: int  # N: draft tokens submitted to the verifier
    depth: int  # the deepest of them
    accepted: int  # A: draft tokens that became text
    emitted: int  # tokens that became text: A, and one of the verifier's unless the text ended
    outcome: Outcome
    overlap: tuple[float, ...]  # per visited node with candidates: sum_v min(p, q)
    draft_calls: int | None  # None: the proposer does not say
    # E[A] given the candidates, the rule's noise averaged out; None: the rule does not say.
    expected_accepted: float | None = None
    bound: tuple[float, ...] = ()  # of sampled candidates at the root: optimum for i.i.d. draws
    # Rules that are not lossless, per visited node: TV and KL (nats) from p to the emitted
    # distribution.
    divergence: tuple[tuple[float, ...], ...] = ()
    # Where asked for, per emitted token: its log-probability (nats) to the verifier itself, before
    # processors, temperature and filters.
    log_probs: tuple[float, ...] = ()
    # What rules that were only shown the candidates would have accepted on average, by name.
    judged: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    # Tokens that the verifier read once more before the new ones, since states cannot be rewound;
    # None: it keeps none.
    reread: int | None = None
    # Parent and token of each draft token, of requests that keep them: for a look at the text.
    candidates: tuple[tuple[int, int], ...] = ()
    # Where experts are counted, per sparse layer: the distinct ones that the step's forward touched
    # for all tokens that it read, and the number of these: roots and draft tokens of all requests.
    experts: tuple[int, ...] = ()
    forward_tokens: int | None = None
    # Of requests that keep their candidates, too: the experts that the root and each accepted token
    # took, [A + 1][L][k].
    routes: tuple[tuple[tuple[int, ...], ...], ...] = ()
    propose_seconds: float = 0.0
    verify_seconds: float = 0.0  # the verifier's forward
    other_seconds: float = 0.0
    learn_seconds: float = 0.0  # of a learner, which teaches the proposer between steps

    @property
    def seconds(self) -> float:
        """What the step took in all."""
        parts = self.propose_seconds, self.verify_seconds, self.other_seconds, self.learn_seconds
        return sum(parts)


@dataclass(frozen=True)
class Trace:
    """One text of one arm: one turn of one sample of a prompt, which has one of each at least.

    Args:
        prompt_id: of the prompt.
        category: of the prompt.
        turn: of a conversation, from 0.
        num_prompt_tokens: that stood before the text.
        output_ids: the tokens of the text, an end token included.
        output_text: the same as text.
        finish_reason: eos, stop, length, context, or refused by the chat template.
        prefill_seconds: of verifier and proposer, outside of the steps.
        steps: one for each forward of the verifier; see `specdec.core.trace.Step`.
        sample: which of a prompt's texts, from 0.
    """

    prompt_id: str
    category: str
    turn: int
    num_prompt_tokens: int
    output_ids: tuple[int, ...]
    output_text: str
    finish_reason: str
    prefill_seconds: float
    steps: tuple[Step, ...] = field(repr=False)
    sample: int = 0

    @property
    def key(self) -> TextKey:
        """What tells the text from all others of an arm."""
        return self.prompt_id, self.sample, self.turn

    @property
    def contexts(self) -> list[int]:
        """The cells that are cached when each step begins: all tokens but the last one."""
        emitted = [0, *accumulate(step.emitted for step in self.steps)]
        return [self.num_prompt_tokens - 1 + number for number in emitted[: len(self.steps)]]

    @property
    def prompt_key(self) -> PromptKey:
        """What the turns of one conversation have in common."""
        return self.prompt_id, self.sample

    def to_row(self) -> dict[str, Any]:
        """Return plain JSON values."""
        row = asdict(self)
        row["output_ids"] = list(self.output_ids)
        row["steps"] = [_step_row(step) for step in self.steps]
        return row

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Trace":
        """Read what `to_row` wrote."""
        fields = dict(row)
        fields["output_ids"] = tuple(row["output_ids"])
        fields["steps"] = tuple(_step(step) for step in row["steps"])
        return cls(**fields)


@dataclass(frozen=True)
class PlainSteps:
    """Steps of `proposer=none` that were timed beside one text: an arm's clock."""

    prompt_id: str
    turn: int
    num_steps: int
    verify_seconds: float
    decode_seconds: float  # of all parts of these steps
    stand_for: int  # as many plain steps, a whole text, as these few are a sample of
    sample: int = 0

    @property
    def key(self) -> TextKey:
        """Which text it was."""
        return self.prompt_id, self.sample, self.turn

    @classmethod
    def of(cls, trace: Trace, stand_for: int | None = None) -> "PlainSteps":
        """Add up a text that was decoded without candidates; None: it is whole."""
        assert not any(step.drafted for step in trace.steps), "a clock does not draft"
        verify = sum(step.verify_seconds for step in trace.steps)
        number = len(trace.steps)
        decode = sum(step.seconds for step in trace.steps)
        stands_for = stand_for or number
        return cls(trace.prompt_id, trace.turn, number, verify, decode, stands_for, trace.sample)

    def to_row(self) -> dict[str, Any]:
        """Return plain JSON values; `PlainSteps(**row)` reads them."""
        return asdict(self)


def _step(row: dict[str, Any]) -> Step:
    fields = dict(row)
    fields["outcome"] = Outcome(row["outcome"])
    fields["overlap"] = tuple(row["overlap"])
    fields["bound"] = tuple(row["bound"])
    fields["divergence"] = tuple(tuple(pair) for pair in row["divergence"])
    fields["log_probs"] = tuple(row.get("log_probs", ()))
    fields["candidates"] = tuple(tuple(pair) for pair in row.get("candidates", ()))
    fields["experts"] = tuple(row.get("experts", ()))
    routes: list[list[list[int]]] = row.get("routes", [])
    fields["routes"] = tuple(tuple(tuple(layer) for layer in token) for token in routes)
    return Step(**fields)


def _step_row(step: Step) -> dict[str, Any]:
    row = asdict(step)
    row["outcome"] = step.outcome.value
    row["overlap"] = list(step.overlap)
    row["bound"] = list(step.bound)
    row["divergence"] = [list(pair) for pair in step.divergence]
    row["candidates"] = [list(pair) for pair in step.candidates]
    row["log_probs"] = list(step.log_probs)
    row["experts"] = list(step.experts)
    for name in ("candidates", "log_probs", "experts", "forward_tokens", "routes"):
        if not row[name]:  # of most steps
            del row[name]
    if step.reread is None:
        del row["reread"]
    if not step.learn_seconds:  # nobody learns
        del row["learn_seconds"]
    return row

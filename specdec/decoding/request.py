"""One request, and its state while it is in flight."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.outcome import Outcome
from specdec.core.processing import Processor
from specdec.core.protocols import SourceReader
from specdec.core.randomness import RandomStream
from specdec.core.room import Room
from specdec.core.sampling import Sampling
from specdec.core.trace import Step, Trace, request_id
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Layer, Proposal, Verdict
from specdec.decoding.stopping import Stopping


@dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Samples of a prompt differ in their noise alone; sample 0 has that of the prompt itself.

    Args:
        prompt_id: its name, which keys its randomness.
        token_ids: the prompt.
        category: that metrics may be grouped by.
        turn: of a conversation, from 0.
        keep_candidates: whether the trace has the draft tokens of each step.
        max_new_tokens: fewer than the decoder's; None: as many.
        sample: which text of the prompt, from 0.
        where: how complaints name the place that it came from.
    """

    prompt_id: str
    token_ids: Sequence[int]
    category: str = ""
    turn: int = 0
    keep_candidates: bool = False
    max_new_tokens: int | None = None
    sample: int = 0
    where: str = field(default="", compare=False)

    @property
    def request_id(self) -> str:
        """The name that keys the request's randomness."""
        return request_id(self.prompt_id, self.turn, self.sample)


def require_decodable(
    requests: Sequence[Request], room: Room, vocab_size: int, tokenizer: Any = None
) -> None:
    """Refuse requests that a verifier cannot decode: V is `vocab_size`.

    Raises:
        UserError: two prompts bear one name, or one is empty, leaves no room in the context, or has
            a token that the verifier does not know, which `tokenizer` can spell.
    """
    names = Counter(request.request_id for request in requests)
    for request in requests:
        called = f"prompt {request.request_id}"
        called = f"{request.where}: {called}" if request.where else called
        if names[request.request_id] > 1:
            raise UserError(f"{called}: there are two of that name")
        if not request.token_ids:
            raise UserError(f"{called}: it is empty")
        refusal = room.refusal(len(request.token_ids))
        if refusal is not None:
            raise UserError(f"{called}: {refusal}")
        strange = next((t for t in request.token_ids if not 0 <= t < vocab_size), None)
        if strange is not None:
            spelt = "" if tokenizer is None else f" {tokenizer.convert_ids_to_tokens(strange)!r}"
            raise UserError(
                f"{called}: token {strange}{spelt} is beyond the verifier's"
                f" embedding of {vocab_size} tokens"
            )


def require_sources(requests: Sequence[Request], verifier: object) -> None:
    """Refuse requests of a verifier with an encoder that are not a source and the token behind it.

    Raises:
        UserError: one lacks either.
    """
    for request in requests if isinstance(verifier, SourceReader) else ():
        assert isinstance(verifier, SourceReader)
        *source, start = request.token_ids or [None]
        if start != verifier.start_id or not source:
            what = "its source is empty" if start == verifier.start_id else f"it ends with {start}"
            raise UserError(
                f"prompt {request.request_id}: {what}; expected a source and token"
                f" {verifier.start_id}, which the decoder begins with, as verifier.encode(text) has"
            )


def require_cells(
    requests: Sequence[Request], max_new_tokens: int, most: int | None, may_forget: bool
) -> None:
    """Refuse requests that could need more cells than the verifier may keep for one; None: any.

    Where the verifier `may_forget` the complaint says how.

    Raises:
        UserError: one could; the last token of a text needs none, since nobody reads it.
    """
    for request in requests if most is not None else ():
        new = min(max_new_tokens, request.max_new_tokens or max_new_tokens)
        needed = len(request.token_ids) + new - 1
        if most is not None and needed > most:
            hint = "; cache=sliding_window or cache=clear goes on with fewer"
            raise UserError(
                f"prompt {request.request_id}: {len(request.token_ids)} tokens and"
                f" max_new_tokens={new} may need {needed} cells, and the cache keeps {most}"
                f"{hint if may_forget else ''}"
            )


def require_samples(number: int, sampling: Sampling) -> None:
    """Refuse several samples of a prompt where there is but one text.

    Raises:
        UserError: the distribution of every token has one token.
    """
    if number > 1 and sampling.is_greedy:
        option = "temperature=0" if sampling.temperature == 0 else "top_k=1"
        raise UserError(
            f"prompts.num_samples={number}: at sampling.{option} all samples of a prompt are the"
            " same text; expected 1, or sampling.temperature=0.7"
        )


@dataclass
class Flight:
    """A request in flight: it owns a row of every cache until it is finished."""

    request: Request
    row: int
    sampling: Sampling
    stopping: Stopping
    seed: int
    budget: int  # tokens that may be emitted in all
    token_ids: list[int] = field(init=False)
    processors: tuple[Processor, ...] = field(init=False)
    features: Mapping[Layer, Tensor] = field(default_factory=dict[Layer, Tensor])
    prefill_seconds: float = 0.0
    steps: list[Step] = field(default_factory=list[Step])
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.token_ids)
        self.processors = self.sampling.of_prompt(self.token_ids, self.budget)

    @property
    def output_ids(self) -> list[int]:
        """The tokens emitted so far."""
        return self.token_ids[len(self.request.token_ids) :]

    def context(self, room: int | None = None) -> Context:
        """Freeze what proposers and rules may know at the start of the next step."""
        num_prompt_tokens = len(self.request.token_ids)
        return Context(
            row=self.row,
            request_id=self.request.request_id,
            token_ids=self.token_ids,
            num_prompt_tokens=num_prompt_tokens,
            sampling=self.sampling,
            budget=self.budget - (len(self.token_ids) - num_prompt_tokens),
            draft_stream=self.stream("draft"),
            verify_stream=self.stream("verify"),
            processors=self.processors,
            features=self.features,
            room=room,
        )

    def show(self, features: Mapping[Layer, Tensor]) -> None:
        """Keep hidden states [n, H] of committed positions for the proposer's next look."""
        if not self.features:
            self.features = features
            return
        pairs = {layer: (self.features[layer], new) for layer, new in features.items()}
        self.features = {layer: torch.cat(pair) for layer, pair in pairs.items()}

    def stream(self, *purpose: str) -> RandomStream:
        """Return the noise of the next step for one purpose; equal calls return equal noise."""
        return RandomStream(self.seed, self.request.request_id, len(self.steps), *purpose)

    def commit(self, proposal: Proposal, verdict: Verdict, log_probs: Sequence[float] = ()) -> Step:
        """Append what a step emits, up to the first end of the text; return its counts.

        `log_probs` are those of the accepted tokens and the one after them, if they are wanted.
        """
        tree = proposal.tree
        block = [*(tree.token_ids[node] for node in verdict.path), verdict.next_token]
        emitted, self.finish_reason = self.stopping.cut(self.output_ids, block)
        self.token_ids += emitted
        if self.finish_reason is None and len(self.output_ids) >= self.budget:
            at_limit = self.budget == self.stopping.max_new_tokens
            self.finish_reason = "length" if at_limit else "context"
        ended = len(emitted) <= len(verdict.path)
        return Step(
            drafted=tree.num_draft_tokens,
            depth=max(tree.depths),
            accepted=min(len(verdict.path), len(emitted)),
            emitted=len(emitted),
            outcome=Outcome.ENDED if ended else verdict.outcome,
            # Entry k is about token k of the block; what a stop string cut off was not visited.
            overlap=_rounded(verdict.overlap[: len(emitted)]),
            bound=_rounded(verdict.bound[: len(emitted)]),
            expected_accepted=rounded(verdict.expected_accepted),
            divergence=tuple(_rounded(pair) for pair in verdict.divergence[: len(emitted)]),
            log_probs=_rounded(log_probs[: len(emitted)]),
            draft_calls=proposal.num_draft_calls,
            candidates=_candidates(tree) if self.request.keep_candidates else (),
        )

    def trace(self, output_text: str) -> Trace:
        """Return the finished request's record."""
        assert self.finish_reason is not None
        return Trace(
            prompt_id=self.request.prompt_id,
            category=self.request.category,
            turn=self.request.turn,
            num_prompt_tokens=len(self.request.token_ids),
            output_ids=tuple(self.output_ids),
            output_text=output_text,
            finish_reason=self.finish_reason,
            prefill_seconds=self.prefill_seconds,
            steps=tuple(self.steps),
            sample=self.request.sample,
        )


def _candidates(tree: CandidateTree) -> tuple[tuple[int, int], ...]:
    return tuple(zip(tree.parents[1:], tree.token_ids[1:], strict=True))


def rounded(value: float | None) -> float | None:
    """Keep six digits, as traces do, of what is known."""
    return None if value is None else round(value, 6)


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in values)

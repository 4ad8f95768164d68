"""The decoding loop, and nothing else: propose, verify, commit, update, record."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from specdec.core.errors import UserError, require, require_int, require_kind
from specdec.core.members import require_members
from specdec.core.on_device import on_device
from specdec.core.on_host import floats
from specdec.core.processing import over_tree
from specdec.core.protocols import (
    BoundedRows,
    CausalLM,
    Forward,
    Learner,
    Pace,
    Proposer,
    Rereading,
    VerificationRule,
    leaves,
)
from specdec.core.room import Room
from specdec.core.sampling import Sampling
from specdec.core.shown import Shown
from specdec.core.trace import Step, TextKey, Trace
from specdec.core.tree import ROOT, CandidateTree
from specdec.core.values import Context, Layer, Proposal, Verdict
from specdec.core.verified import verified
from specdec.decoding.asking import allowed, for_all
from specdec.decoding.claims import claims_of
from specdec.decoding.experts import routing_of, with_experts
from specdec.decoding.pairing import finisher_of, is_lossless, require_judges
from specdec.decoding.request import (
    Flight,
    Request,
    require_cells,
    require_decodable,
    require_samples,
    require_sources,
    rounded,
)
from specdec.decoding.stopping import Stopping, default_stopping, text_of
from specdec.decoding.turns import Decodable, beforehand, decode_turns, listed, request_of
from specdec.lm.batch import TreeBatch
from specdec.lm.begin import begin
from specdec.lm.branching import require_reads
from specdec.lm.encoder_decoder import share_encoder
from specdec.lm.fingerprint import require_tokens_of
from specdec.lm.generation import heeded
from specdec.lm.hf import HFCausalLM
from specdec.lm.vocabularies import require_model, require_one_family
from specdec.prompts import Prompt
from specdec.runtime.preparation import now


class SpeculativeDecoder:
    """Decode requests with one verifier, one proposer and one rule, `batch` requests at a time.

    `judges` are further rules that are shown the same proposals and decide nothing: what each would
    have accepted on average is recorded in `Step.judged`, outside of all seconds. So rules are
    compared on the very same candidates, which texts of their own would not give them. With
    `log_probs` the steps say how likely each emitted token was to the verifier, with `experts` how
    many experts of the verifier each forward touched.

    Args:
        verifier: the large model.
        proposer: what drafts candidate trees.
        rule: which candidates survive.
        sampling: the distribution that tokens are drawn from; None: the model's own, temperature 1.
        stopping: what ends a text; None: what the checkpoint says.
        batch: requests in flight.
        seed: of all that is drawn.
        allow_lossy: whether the rule may change the distribution.
        judges: further rules, by name.
        log_probs: whether steps say how likely each token was, in nats.
        experts: whether steps say which experts of the verifier they took; slower.
        learner: what makes the proposer better between steps; None: it stays as it is.
        pace: chooses how deep candidates go at each step; None: as deep as the proposer's go.

    Raises:
        UserError: a part lacks a member of its protocol, the rule or a judge cannot decide on the
            proposer's candidates, or the rule is not lossless for them and `allow_lossy` is off; or
            the verifier has no experts that can be counted.
    """

    def __init__(
        self,
        verifier: CausalLM,
        proposer: Proposer,
        rule: VerificationRule,
        sampling: Sampling | None = None,
        stopping: Stopping | None = None,
        batch: int = 1,
        seed: int = 0,
        allow_lossy: bool = False,
        judges: Mapping[str, VerificationRule] | None = None,
        log_probs: bool = False,
        experts: bool = False,
        learner: Learner | None = None,
        pace: Pace | None = None,
    ):
        require_int("batch", batch, 1)
        require_int("seed", seed, 0)
        self.judges = dict(judges or {})
        require_model(verifier, "verifier")
        require_kind("sampling", sampling, Sampling | None, "sd.Sampling(temperature=0.7)")
        ending = "sd.Stopping.of(verifier, max_new_tokens=64)"
        require_kind("stopping", stopping, Stopping | None, ending)
        require_members(proposer, "proposer")
        for each in (rule, *self.judges.values()):
            require_members(each, "verification rule")
        require_reads(verifier, proposer)
        for each in leaves(proposer):
            require_one_family(verifier, each)
            require_tokens_of(getattr(verifier, "tokenizer", None), each)
            share_encoder(verifier, each)
        if pace is not None:
            require_members(pace, "pace")
            expected = "None: of requests that rest, states are kept for the proposer alone"
            require(learner is None, "learner", type(learner).__name__, expected)
        self.pace = pace
        self.lossless = is_lossless(rule, proposer.draw, allow_lossy)
        require_judges(self.judges, proposer.draw)
        self.verifier = verifier
        self.proposer = proposer
        self.rule = rule
        self.learner = learner
        self.stopping = stopping or default_stopping(verifier)
        self.sampling = heeded(sampling or Sampling(), verifier, self.stopping.end_ids)
        self.batch = batch
        self.seed = seed
        self._allow_lossy = allow_lossy
        self._log_probs = log_probs
        self._routing = routing_of(verifier) if experts else None
        self._claims = claims_of(proposer)
        self._finisher = finisher_of(proposer, verifier, experts)
        self._bounded = verifier if isinstance(verifier, BoundedRows) else None
        self._rereading = verifier if isinstance(verifier, Rereading) else None

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse requests that cannot be decoded, before any is.

        Raises:
            UserError: two prompts bear one name, or one is empty, leaves no room in the verifier's
                context, or has a token that the verifier does not know; or samples are asked for
                where all are the same.
        """
        verifier = self.verifier
        tokenizer = getattr(verifier, "tokenizer", None)
        most, forgets = getattr(verifier, "max_cells", None), getattr(verifier, "may_forget", False)
        require_cells(requests, self.stopping.max_new_tokens, most, forgets)
        require_samples(1 + max((each.sample for each in requests), default=0), self.sampling)
        require_decodable(requests, Room.of(verifier), verifier.vocab_size, tokenizer)
        require_sources(requests, verifier)

    def expect(self, num_texts: int) -> None:
        """Tell models that choose how they run how many tokens may be written."""
        models = (getattr(each, "model", None) for each in leaves(self.proposer))
        verifier = None if self._finisher else self.verifier  # of which no whole step is run
        for model in (verifier, *models):
            if isinstance(model, HFCausalLM):
                model.expect(num_texts * self.stopping.max_new_tokens)

    def decode(
        self,
        items: Decodable | Sequence[Decodable],
        see: Callable[[Trace], object] = lambda trace: None,
    ) -> list[Trace]:
        """Decode requests, prompts or bare texts; return their traces in the same order.

        Prompts are rendered by the verifier's tokenizer, with its chat template if it has one; a
        later turn is asked after the decoder's own answers, and its trace stands behind theirs.
        `see` gets each trace as soon as it is there.

        Raises:
            UserError: it is nothing of these, or cannot be decoded; see `check`.
        """
        requests, prompts = listed(items)
        if prompts:
            requests = beforehand(prompts, self._request)
            self.check(requests)
            tokenizer, room = getattr(self.verifier, "tokenizer", None), Room.of(self.verifier)
            found = decode_turns(prompts, self._request, self.stream, tokenizer, room.too_long)
        else:
            found = self.stream(requests)
        self.expect(len(requests))
        traces: dict[TextKey, Trace] = {}
        for trace in found:
            traces[trace.key] = trace
            see(trace)
        return [traces[each.prompt_id, each.sample, each.turn] for each in requests]

    def _request(self, prompt: Prompt, answers: Sequence[str]) -> Request:
        return request_of(prompt, answers, self.verifier)

    @torch.inference_mode()
    def stream(self, requests: Sequence[Request]) -> Iterator[Trace]:
        """Yield each request's trace as soon as it is finished."""
        self.check(requests)
        self._open(requests)
        waiting, in_flight = deque(requests), list[Flight]()
        while waiting or in_flight:
            in_flight = self._admit(waiting, in_flight)
            contexts = [flight.context(self._room(flight)) for flight in in_flight]
            clock = Clock(self.verifier.device)

            proposals = self._propose(in_flight, contexts)
            clock.lap("propose")
            forward = self._look_at(contexts, proposals)
            clock.lap("verify")
            verifier_probs = self._verifier_probs(contexts, proposals, forward.logits)  # [B, M, V]
            streams = [context.verify_stream for context in contexts]
            certain = self.sampling.temperature == 0
            verdicts = verified(self.rule, Shown(proposals, verifier_probs, streams, certain))
            steps = self._commit(in_flight, proposals, verdicts, verifier_probs, forward)
            self.proposer.update(contexts, verdicts)
            clock.lap("other")
            self._learn(in_flight, waiting, clock)
            if self.pace is not None:
                self.pace.learn(contexts, proposals, verdicts, clock.seconds)

            steps = self._judge(in_flight, proposals, verifier_probs, steps)
            if self._routing is not None:
                steps = with_experts(steps, in_flight, proposals, verdicts, forward, self._routing)
            for flight, step in zip(in_flight, steps, strict=True):
                flight.steps.append(clock.stamp(step, share=len(in_flight)))
            yield from (self._trace(flight) for flight in in_flight if flight.finish_reason)
            in_flight = [flight for flight in in_flight if not flight.finish_reason]

    def _open(self, requests: Sequence[Request]) -> None:
        """Give verifier and proposer as many empty rows as can be in flight."""
        num_rows = max(1, min(self.batch, len(requests)))
        longest = max((len(request.token_ids) for request in requests), default=1)
        most = min(longest + self.stopping.max_new_tokens, self.verifier.max_length)
        capacity = most + self.proposer.max_depth + 1
        self.verifier.open(num_rows, capacity)
        self.proposer.open(num_rows, capacity, self.verifier.vocab_size)
        if self.pace is not None:
            self.pace.open(self.proposer.max_depth)
        self._num_rows = num_rows

    def _admit(self, waiting: deque[Request], in_flight: list[Flight]) -> list[Flight]:
        """Prefill: waiting requests take the free rows; not a step."""
        free = sorted(set(range(self._num_rows)) - {flight.row for flight in in_flight})
        entering = [self._take_off(waiting.popleft(), row) for row in free if waiting]
        if not entering:
            return in_flight
        clock = Clock(self.verifier.device)
        rows = [flight.row for flight in entering]
        for row in rows:
            self.verifier.keep(row, 0)
        # The last token of a prompt is the root of the first tree, and is read with it.
        prompts = [flight.token_ids for flight in entering]
        features = begin(self.verifier, rows, prompts, self._layers)
        contexts = [flight.context() for flight in entering]
        for flight, hidden in zip(entering, features, strict=True):
            flight.features = hidden
        if self.learner is not None:  # before the proposer reads anything with its weights
            self.learner.begin([flight.context() for flight in entering])
        self.proposer.reset(contexts)
        clock.lap("prefill")
        for flight in entering:
            flight.prefill_seconds = clock.seconds["prefill"] / len(entering)
        return sorted([*in_flight, *entering], key=lambda flight: flight.row)

    def _take_off(self, request: Request, row: int) -> Flight:
        room = Room.of(self.verifier).behind(len(request.token_ids))
        most = self.stopping.max_new_tokens
        budget = min(most, room, request.max_new_tokens or most)
        return Flight(request, row, self.sampling, self.stopping, self.seed, budget)

    def _room(self, flight: Flight) -> int | None:
        """Return how many tokens the step may read, if the verifier's cache bounds that."""
        return None if self._bounded is None else self._bounded.room(flight.row)

    def _propose(self, in_flight: Sequence[Flight], contexts: Sequence[Context]) -> list[Proposal]:
        """Ask for candidates; what could never be emitted is not submitted."""
        able = allowed(self.pace, self.proposer, contexts)
        proposals = self.proposer.propose(able) if able else []
        self._hold_to_claims(able, proposals)
        rows = {context.row for context in able}
        for flight in in_flight:
            if flight.row in rows:  # whoever was not asked is shown its states with the next ones
                flight.features = {}
        return [
            self.stopping.pruned(proposal, context)
            for proposal, context in zip(for_all(proposals, able, contexts), contexts, strict=True)
        ]

    def _hold_to_claims(self, contexts: Sequence[Context], proposals: Sequence[Proposal]) -> None:
        """Refuse proposals that are not what was declared, or never call the text lossless."""
        try:
            if self._claims is not None:
                self._claims.check(contexts, proposals)
        except UserError:
            if not self._allow_lossy:
                raise
            self.lossless, self._claims = False, None

    def _look_at(self, contexts: Sequence[Context], proposals: Sequence[Proposal]) -> Forward:
        """Let the verifier read every tree, all of them in one forward: this is the step."""
        rows = [context.row for context in contexts]
        trees: list[CandidateTree] = [proposal.tree for proposal in proposals]
        if self._finisher is not None:
            return self._finisher.finish(rows, trees)
        starts = [self.verifier.length(row) for row in rows]
        batch = TreeBatch.of(trees, starts, self.verifier.device)
        reader = self._routing or self.verifier
        return reader.forward(rows, *batch, layers=self._layers)

    @property
    def _layers(self) -> Sequence[Layer]:
        """The hidden layers that the proposer or its learner reads."""
        learner: Sequence[Layer] = () if self.learner is None else self.learner.layers
        return tuple(dict.fromkeys([*self.proposer.layers, *learner]))

    def _learn(
        self, in_flight: Sequence[Flight], waiting: Sequence[Request], clock: "Clock"
    ) -> None:
        """Show the learner what was committed; no request has candidates now."""
        if self.learner is not None:
            self.learner.learn([flight.context() for flight in in_flight])
            if not waiting and all(flight.finish_reason for flight in in_flight):
                self.learner.end()
            clock.lap("learn")

    def _verifier_probs(
        self, contexts: Sequence[Context], proposals: Sequence[Proposal], logits: Tensor
    ) -> Tensor:  # [B, M, V] -> [B, M, V]
        """Return p after each node, whose own path is what processors look at."""
        if self.sampling.processors:
            logits = torch.stack(
                [
                    over_tree(context.processors, context.token_ids, proposal.tree, rows)
                    for context, proposal, rows in zip(contexts, proposals, logits, strict=True)
                ]
            )
        return self.sampling.warp(logits)

    def _commit(
        self,
        in_flight: Sequence[Flight],
        proposals: Sequence[Proposal],
        verdicts: Sequence[Verdict],
        verifier_probs: Tensor,
        forward: Forward,
    ) -> list[Step]:
        """Append the emitted tokens; rewind each cache row to the accepted path."""
        steps: list[Step] = []
        for index, (flight, proposal, verdict) in enumerate(
            zip(in_flight, proposals, verdicts, strict=True)
        ):
            if verdict.next_token >= verifier_probs.shape[-1]:
                raise UserError(
                    f"prompt {flight.request.request_id}: the verifier's or the draft's logits are"
                    " not numbers (NaN); a wider dtype may help, dtype=bfloat16 or float32"
                )
            accepted = [ROOT, *verdict.path]
            self.verifier.keep(flight.row, len(flight.token_ids) - 1, accepted)
            if forward.hidden:
                kept = on_device(accepted, verifier_probs.device)
                new = {layer: hidden[index, kept] for layer, hidden in forward.hidden.items()}
                flight.show(new)
            said = forward.logits[index] if self._log_probs else None
            step = flight.commit(proposal, verdict, _log_probs(said, proposal, verdict))
            if self._rereading is not None:
                step = replace(step, reread=self._rereading.reread(flight.row))
            steps.append(step)
        return steps

    def _judge(
        self,
        in_flight: Sequence[Flight],
        proposals: Sequence[Proposal],
        verifier_probs: Tensor,
        steps: Sequence[Step],
    ) -> Sequence[Step]:
        """Note what the judges would have accepted; their noise is nobody else's."""
        if not self.judges:
            return steps
        said: list[dict[str, float | None]] = [{} for _ in steps]
        for name, judge in self.judges.items():
            streams = [flight.stream("judge", name) for flight in in_flight]
            verdicts = verified(judge, Shown(proposals, verifier_probs, streams))
            for values, verdict in zip(said, verdicts, strict=True):
                values[name] = rounded(verdict.expected_accepted)
        return [replace(step, judged=each) for step, each in zip(steps, said, strict=True)]

    def _trace(self, flight: Flight) -> Trace:
        decode = self.stopping.decode or text_of(self.verifier)
        return flight.trace("" if decode is None else decode(flight.output_ids))


def _log_probs(
    logits: Tensor | None, proposal: Proposal, verdict: Verdict
) -> list[float]:  # logits [M, V]
    """Return log p of each token of a block, to the verifier itself; nothing without logits."""
    if logits is None:
        return []
    block = [*(proposal.tree.token_ids[node] for node in verdict.path), verdict.next_token]
    before = logits[[ROOT, *verdict.path]].float().log_softmax(dim=-1)
    return floats(before[range(len(block)), block])


class Clock:
    """Wall seconds between laps, without what programs take to be compiled.

    Waits for the device, so that each lap owns its work.
    """

    def __init__(self, device: torch.device):
        self.seconds: dict[str, float] = {}
        self._device = device
        self._asynchronous = device.type == "cuda"
        self._last = self._now()

    def _now(self) -> float:
        if self._asynchronous:
            torch.cuda.current_stream(self._device).synchronize()  # not what is beside the steps
        return now()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under a name."""
        now = self._now()
        self.seconds[name] = now - self._last
        self._last = now

    def stamp(self, step: Step, share: int) -> Step:
        """Fill in a step's seconds, shared among the requests in flight."""
        return replace(
            step,
            propose_seconds=round(self.seconds["propose"] / share, 9),
            verify_seconds=round(self.seconds["verify"] / share, 9),
            other_seconds=round(self.seconds["other"] / share, 9),
            learn_seconds=round(self.seconds.get("learn", 0.0) / share, 9),
        )

"""Replay by drafting along the text, and only where steps begin.

Where nothing is left to chance once the text is given, decoding it again is replay: point masses
are accepted as far as the text follows them, whatever the rule; and with `match` candidates of any
kind are, since the text is the verifier's own draw, which knew nothing of them. So proposers are
asked as the decoder asks them, and the text decides. What is drawn (candidates under `match`) is
drawn anew: the result is one sample of what decoding would count, and not its mean.
"""

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from specdec.core.errors import Unfit
from specdec.core.outcome import Outcome
from specdec.core.protocols import CausalLM, Proposer, VerificationRule
from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.core.trace import Step, Trace
from specdec.core.tree import ROOT
from specdec.core.values import Draw, Draws, Layer, Proposal, Verdict, each_draw
from specdec.decoding.request import Flight, Request
from specdec.decoding.stopping import Stopping
from specdec.lm.generation import heeded
from specdec.recording.hidden_states import States
from specdec.recording.texts import Text
from specdec.replaying.arm import is_decided_by_text, name_of
from specdec.verification.verdicts import ending
from specdec.verification.walk import bearer


def require_jumps(rule: VerificationRule, draws: Draws) -> None:
    """Refuse what depends on more than the text.

    Raises:
        Unfit: whether such candidates are accepted is decided by chance.
    """
    for draw in each_draw(draws):
        # A proposer that has no candidates, or does not say how it draws them, copies them.
        if not is_decided_by_text(rule, Draw.DETERMINISTIC if draw is None else draw):
            what = "candidates" if draw is None else f"{draw.value} candidates"
            raise Unfit(
                f"verification={name_of(rule)}: {what} of this proposer cannot be replayed; decode"
                " them"
            )


@torch.inference_mode()
def jump(
    texts: Sequence[Text],
    proposer: Proposer,
    verifier: CausalLM,
    sampling: Sampling,
    stopping: Stopping,
    batch: int = 16,
    seed: int = 0,
    states: States | None = None,
) -> list[Trace]:
    """Return a trace of each text, as decoding with `proposer` might leave it, seconds aside.

    `verifier` reads the texts only if the proposer wants hidden states and `states` has none yet.
    """
    sampling = heeded(sampling, verifier, stopping.end_ids)
    states = States(verifier, batch) if states is None else states
    waiting, in_flight = deque(texts), list[_Rerun]()
    free = list(range(min(batch, len(texts))))
    longest = max((len(text.prompt_ids) + text.budget for text in texts), default=0)
    most = min(longest, verifier.max_length)
    proposer.open(len(free), most + proposer.max_depth + 1, verifier.vocab_size)
    traces: list[Trace] = []
    while waiting or in_flight:
        entering: list[_Rerun] = []
        while waiting and free:
            read = states.of(waiting[0], proposer.layers, waiting)
            entering.append(_Rerun(waiting.popleft(), free.pop(), read, sampling, seed))
        _begin(entering, proposer)
        in_flight += entering

        contexts = [each.flight.context() for each in in_flight]
        proposals = [
            stopping.pruned(proposal, context)
            for proposal, context in zip(proposer.propose(contexts), contexts, strict=True)
        ]
        verdicts = [
            each.follow(proposal) for each, proposal in zip(in_flight, proposals, strict=True)
        ]
        proposer.update(contexts, verdicts)
        over = [each.flight for each in in_flight if each.flight.finish_reason]
        free += [flight.row for flight in over]
        traces += [flight.trace("") for flight in over]
        in_flight = [each for each in in_flight if not each.flight.finish_reason]
    return traces


def _begin(entering: "Sequence[_Rerun]", proposer: Proposer) -> None:
    """Hand over the prompts as the decoder does: no hidden states yet while rows are reset."""
    if entering:
        proposer.reset([each.flight.context() for each in entering])
    for each in entering:
        each.read_prompt()


class _Afresh(Flight):
    """A request with noise of its own: whatever wrote the text, its seed does not come again."""

    def stream(self, *purpose: str) -> RandomStream:
        """Return noise that no decoding has."""
        return super().stream("replay", *purpose)


class _Rerun:
    """A text that is gone through once more; it owns a row of the proposer's, as a request does."""

    def __init__(
        self, text: Text, row: int, states: Mapping[Layer, Tensor], sampling: Sampling, seed: int
    ):
        request = Request(
            text.prompt_id, text.prompt_ids, text.category, text.turn, sample=text.sample
        )
        # The text itself says where it ends, also at a stop string.
        self.flight = _Afresh(request, row, sampling, Stopping(text.budget), seed, text.budget)
        self._text = text
        self._states = states  # of the tokens but the last, per layer [L, H]

    def read_prompt(self) -> None:
        """Show the proposer the hidden states of the prompt, but for its last token."""
        self._show(0, len(self._text.prompt_ids) - 1)

    def follow(self, proposal: Proposal) -> Verdict:
        """Accept candidates as far as the text goes on with them, and commit what it says.

        So do `Match` and the decoder where the verifier is certain of the text.
        """
        flight, tree = self.flight, proposal.tree
        place = len(flight.token_ids)
        left = self._text.output_ids[place - len(self._text.prompt_ids) :]
        path, node = list[int](), ROOT
        for token in left:
            child = bearer(tree, node, token)
            if child is None:
                break
            path.append(child)
            node = child
        emitted = left[: len(path) + 1]
        ended = len(emitted) <= len(path)
        outcome = Outcome.ENDED if ended else ending(proposal, path)
        self._show(place - 1, place + len(path))
        flight.token_ids += emitted
        if len(emitted) == len(left):
            flight.finish_reason = self._text.finish_reason
        flight.steps.append(
            Step(
                drafted=tree.num_draft_tokens,
                depth=max(tree.depths),
                accepted=len(path),
                emitted=len(emitted),
                outcome=outcome,
                overlap=(),
                draft_calls=proposal.num_draft_calls,
            )
        )
        return Verdict(tuple(path), emitted[-1], outcome)

    def _show(self, start: int, end: int) -> None:
        """Let the proposer's next look be at the hidden states of these tokens."""
        self.flight.features = {layer: state[start:end] for layer, state in self._states.items()}

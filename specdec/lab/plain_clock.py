"""The clock of a job: a few plain steps, timed between its prompts on the texts just written.

Seconds of one hour say nothing about those of another. So each job carries its own measure of one
token at a time: after every few prompts `proposer=none` decodes a little of their texts, with a
cache of its own and as many requests in flight. Its tokens are thrown away, and its seconds are
nobody's but the clock's.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

from specdec.core.protocols import SourceReader
from specdec.core.trace import PlainSteps, TextKey, Trace
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.lab.arm import Arm, answers_of
from specdec.metrics import MIN_PROMPTS
from specdec.prompts import Prompt
from specdec.proposer.none import NoProposer
from specdec.verification.rejection import Rejection

MIN_STEPS = 4  # of a text, if it has so many
TEXT_SHARE = 1 / 16  # of a text's tokens
TIME_SHARE = 0.1  # that the clock may take of a job's seconds, once enough prompts were timed


def _alone(value: bool) -> bool:
    return value


class PlainClock:
    """Times plain steps beside an arm.

    Args:
        arm: what it is beside.
        agreed: makes processes that run parts of one model decide alike, whatever their clocks say.
    """

    def __init__(self, arm: Arm, agreed: Callable[[bool], bool] = _alone):
        self._arm = arm
        self._agreed = agreed
        self._decoder: SpeculativeDecoder = copy.copy(arm.decoder)
        self._decoder.proposer = NoProposer()
        self._decoder.rule = Rejection()
        self._decoder.judges = {}
        self._decoder.learner = None
        self._decoder.pace = None
        self._prompts = set[str]()
        self._own_seconds = 0.0
        self._arm_seconds = 0.0

    def warm_up(self, prompt: Prompt) -> None:
        """Decode a few tokens that are not recorded."""
        self._run([replace(self._arm.request(prompt, []), max_new_tokens=MIN_STEPS)])

    def beside(self, prompts: Sequence[Prompt], traces: Sequence[Trace]) -> list[PlainSteps]:
        """Time plain steps on texts that were just decoded, all turns of these prompts.

        Nothing is timed where the clock has had its share of the time.
        """
        self._arm_seconds += sum(map(_seconds, traces))
        enough = len(self._prompts) >= MIN_PROMPTS
        if self._agreed(enough and self._own_seconds > TIME_SHARE * self._arm_seconds):
            return []
        self._prompts |= {prompt.prompt_id for prompt in prompts}
        by_turn = {trace.key: trace for trace in traces}
        found: list[PlainSteps] = []
        for turn in range(max(prompt.num_turns for prompt in prompts)):
            requests = [
                self._request(prompt, turn, by_turn)
                for prompt in prompts
                if turn < prompt.num_turns and by_turn[*prompt.key, turn].output_ids
            ]
            found += [
                PlainSteps.of(plain, len(by_turn[plain.key].output_ids))
                for plain in self._run(requests)
            ]
        return found

    def _request(self, prompt: Prompt, turn: int, traces: dict[TextKey, Trace]) -> Request:
        """Ask for the middle of a text, where the context is as long as it is on average.

        What a step takes grows with the context, about linearly, so that such a stretch takes what
        all the text takes on average; and all texts are shortened by the same share, so that as
        many requests are in flight as in a whole run without candidates. Behind an encoder a text
        is asked from its beginning: what stands before it is a source, and no text.
        """
        earlier = [traces[*prompt.key, number] for number in range(turn)]
        answers = answers_of(earlier, self._arm.verifier).get(prompt.key, [])
        request = self._arm.request(prompt, answers)
        text = traces[*prompt.key, turn].output_ids
        number = min(len(text), max(MIN_STEPS, round(TEXT_SHARE * len(text))))
        written = text[: (len(text) - number) // 2]
        if isinstance(self._arm.verifier, SourceReader):
            written = ()
        return replace(request, token_ids=[*request.token_ids, *written], max_new_tokens=number)

    def _run(self, requests: Sequence[Request]) -> list[Trace]:
        if not requests:
            return []
        longest = max(request.max_new_tokens or 0 for request in requests)
        stopping = replace(self._arm.decoder.stopping, max_new_tokens=longest)
        self._decoder.stopping = stopping
        traces = self._decoder.decode(requests)
        self._own_seconds += sum(map(_seconds, traces))
        return traces


def _seconds(trace: Trace) -> float:
    return trace.prefill_seconds + sum(step.seconds for step in trace.steps)

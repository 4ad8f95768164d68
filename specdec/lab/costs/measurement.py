"""All that `specdec-costs` times: the verifier's forwards, and the steps of each proposer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from specdec.core.errors import UserError
from specdec.core.trace import Trace
from specdec.lab.arm import Arm
from specdec.lab.costs.candidates import count_experts, of_text
from specdec.lab.costs.copying import copied_bytes_per_second
from specdec.lab.costs.forward_grid import ForwardGrid, contexts_within
from specdec.lab.costs.forward_timing import Samples, forwards_of, time_forwards
from specdec.lab.interleaving import interleave
from specdec.lm.expert_counts import ExpertCounts
from specdec.lm.hf import HFCausalLM
from specdec.prompts import Prompt
from specdec.proposer.draft_model import DraftModel
from specdec.replaying.cost_fitting import Timed, fitted
from specdec.replaying.costs import Costs, ProposerKey
from specdec.replaying.curves import Curve, rising
from specdec.replaying.doubts import doubts
from specdec.replaying.forwards import Forwards


@dataclass(frozen=True)
class TimedShape:
    """A tree whose seconds are to be known."""

    draft: ProposerKey
    parents: tuple[int, ...]  # per level
    choice: str


@dataclass(frozen=True)
class Measurement:
    """What is timed, and how often.

    Args:
        running: arms of one verifier, by name; each grows trees of one shape.
        shapes: what the steps of each arm tell, by the same names.
        prompts: that all arms decode.
        grid: of the verifier's forwards.
        rounds: times that the prompts are decoded.
    """

    running: Mapping[str, Arm]
    shapes: Mapping[str, TimedShape]
    prompts: Sequence[Prompt]
    grid: ForwardGrid
    rounds: int

    @property
    def verifier(self) -> HFCausalLM:
        """The one of all arms."""
        return next(iter(self.running.values())).verifier

    def believed(self, circumstances: Mapping[str, Any]) -> Costs:
        """Time everything, and once more if what came of it cannot be true.

        Raises:
            UserError: it cannot be true again, or there were too few steps.
        """
        found, costs = self._once(circumstances)
        if found:
            print(f"measured again, since this cannot be: {'; '.join(found)}")
            found, costs = self._once(circumstances)
        if found:
            raise UserError(f"{found[0]}: this cannot be; measure again on a quiet machine")
        return costs

    def _once(self, circumstances: Mapping[str, Any]) -> tuple[list[str], Costs]:
        # Steps come first: a model that has to step down from a runtime does so there.
        traces = self._steps()
        timed = [_timed(self.shapes[name], each) for name, each in traces.items()]
        forwards, samples = self._forwards(traces)
        number = sum(len(each.steps) for each in timed)
        known = {**circumstances, "runtime": self.verifier.runtime, "num_steps": number}
        for model in self._draft_models.values():
            known["draft_runtime"] = model.runtime
        costs = fitted(forwards, timed, self._growths(), known)
        return doubts(samples, forwards, timed), costs

    def _forwards(self, traces: Mapping[str, Sequence[Trace]]) -> tuple[Forwards, Samples]:
        """Time the verifier's forwards: of a mixture of experts, over the texts of all arms."""
        reads, experts = None, None
        if ExpertCounts.of(self.verifier.model.config) is not None:
            reads = of_text(self.verifier, self.grid, self._text(traces))
            experts = count_experts(self.verifier, self.grid, reads)
        samples = time_forwards(self.verifier, self.grid, reads)
        speed = copied_bytes_per_second(self.verifier.device)
        return forwards_of(self.verifier, self.grid, samples, speed, experts), samples

    def _text(self, traces: Mapping[str, Sequence[Trace]]) -> list[int]:
        """Join the prompts, and what was written to each of them."""
        arm = next(iter(self.running.values()))
        answers = {each.prompt_key: each for each in traces[arm.name] if each.turn == 0}
        text: list[int] = []
        for prompt in self.prompts:
            text += [*arm.request(prompt, []).token_ids, *answers[prompt.key].output_ids]
        return text

    def _steps(self) -> dict[str, list[Trace]]:
        """Decode all prompts with everything, in turns."""
        arms = list(self.running.values())
        traces: dict[str, list[Trace]] = {name: [] for name in self.running}
        for _ in range(self.rounds):
            for arm, trace in interleave(arms, self.prompts, arms[0].turn_size):
                traces[arm.name].append(trace)
        return traces

    @property
    def _draft_models(self) -> dict[str, HFCausalLM]:
        """By what their proposers are known by."""
        found: dict[str, HFCausalLM] = {}
        for name, arm in self.running.items():
            proposer = arm.decoder.proposer
            model = proposer.model if isinstance(proposer, DraftModel) else None
            if isinstance(model, HFCausalLM):
                found.setdefault(self.shapes[name].draft.known_by, model)
        return found

    def _growths(self) -> dict[str, Curve]:
        """Time a token of each draft model behind all contexts, for one request."""
        return {key: _growth(model, self.grid) for key, model in self._draft_models.items()}


def _timed(shape: TimedShape, traces: Sequence[Trace]) -> Timed:
    steps = [step for trace in traces for step in trace.steps]
    contexts = [context for trace in traces for context in trace.contexts]
    return Timed(shape.draft, shape.parents, shape.choice, steps, contexts)


def _growth(model: HFCausalLM, grid: ForwardGrid) -> Curve:
    contexts = contexts_within(grid.contexts, [1], model.max_length)
    samples = time_forwards(model, ForwardGrid([1], contexts, grid.batch, grid.repeats))
    middles = {shape.context: median(each) / grid.batch for shape, each in samples.items()}
    return Curve(tuple(contexts), rising([middles[context] for context in contexts]))

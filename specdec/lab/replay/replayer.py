"""Replay arms on texts: which engine serves an arm, and what arms share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from specdec.core.errors import Unfit
from specdec.core.protocols import Proposer
from specdec.core.sampling import Sampling
from specdec.decoding.stopping import Stopping
from specdec.lab.replay.arms import ReplayArm
from specdec.lm.hf import HFCausalLM
from specdec.metrics import Tally, mean_tally
from specdec.proposer.cascade import Cascade
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.feature_proposer import FeatureProposer
from specdec.recording.hidden_states import States
from specdec.recording.recorded import Recording
from specdec.recording.texts import Text
from specdec.replaying.arm import ClosedArm
from specdec.replaying.closed_form import Rows, replay
from specdec.replaying.costs import Costs, clock_of, with_seconds
from specdec.replaying.draft_distributions import HeadDistributions, ModelDistributions
from specdec.replaying.expected_steps import Priced, Replayed, tally
from specdec.replaying.paced import Course, Player, courses_along, courses_of
from specdec.replaying.redraft import jump
from specdec.results.progress import Progress
from specdec.tree.chain import Chain

NUM_PLAYS = 8  # of an arm whose steps choose their depth: each is but one sample


@dataclass(frozen=True)
class Replayer:
    """Texts of a verifier, on which arms are replayed.

    Args:
        texts: that the verifier wrote.
        verifier: what reads them again, where their recording does not say enough.
        sampling: that they were drawn with, as `heeded` returns it.
        stopping: what ended them.
        batch: texts that are read at a time, where drafts are made one by one.
        seed: of candidates that are drawn anew.
        rows: the distributions that tokens were drawn from, as far as a recording has them; None:
            the verifier is asked.
        costs: by which seconds are predicted of arms whose proposer they know.
    """

    texts: Sequence[Text]
    verifier: HFCausalLM
    sampling: Sampling
    stopping: Stopping
    batch: int = 64
    seed: int = 0
    rows: Rows | None = None
    costs: Costs | None = None

    @classmethod
    def of(
        cls,
        recording: Recording,
        verifier: HFCausalLM,
        sampling: Sampling,
        batch: int = 64,
        seed: int = 0,
        costs: Costs | None = None,
    ) -> Replayer:
        """Take what a recording knows; `require_made_for` says whether it is the verifier's."""
        known = recording.texts, verifier, sampling, recording.stopping_of(verifier)
        return cls(*known, batch, seed, recording.rows, costs)

    def replay(self, arms: Mapping[str, ReplayArm]) -> dict[str, Tally]:
        """Replay arms by name: those that draft alike together, others one by one."""
        for line in self.unpriced(arms):
            print(line)
        groups: dict[str, dict[str, ReplayArm]] = {}
        tallies: dict[str, Tally] = {}
        with Progress(len(arms), "replay", "arm") as bar:
            for name, arm in arms.items():
                if arm.pace is not None:
                    tallies[name] = self._paced(arm)
                    bar.update()
                elif arm.closed is None:
                    tallies[name] = self._decoded_along(arm)
                    bar.update()
                else:
                    groups.setdefault(arm.draft.known_by, {})[name] = arm
            for group in groups.values():
                tallies |= self._in_closed_form(group)
                bar.update(len(group))
        return {name: tallies[name] for name in arms}

    def unpriced(self, arms: Mapping[str, ReplayArm]) -> list[str]:
        """Say of which proposers no speed will be predicted, because nobody measured them."""
        if self.costs is None:
            return []
        return [
            f"no speed is predicted for {key.name}: costs say {self.costs.nothing_about(key)}"
            for key in {arm.draft.known_by: arm.draft for arm in arms.values()}.values()
            if not self.costs.knows(key)
        ]

    @cached_property
    def _states(self) -> States:
        """What the verifier has read, for all arms."""
        return States(self.verifier, self.batch)

    def _in_closed_form(self, arms: Mapping[str, ReplayArm]) -> dict[str, Tally]:
        """Replay arms that draft alike."""
        first = next(iter(arms.values()))
        closed = {name: arm.closed for name, arm in arms.items() if arm.closed is not None}
        found = self._replayed(first.make(self.verifier), closed)
        return {
            name: tally(
                parts,
                closed[name].num_drafted,
                self._seconds_of(arms[name], closed[name]),
                None if self.costs is None else self.costs.plain_along,
            )
            for name, parts in found.items()
        }

    def _paced(self, arm: ReplayArm) -> Tally:
        """Play the decoding of an arm whose steps choose their depth; the mean of several times."""
        assert self.costs is not None
        self.costs.require(arm.draft, "FILE")
        proposer = arm.make(self.verifier)
        courses = self._courses(arm, proposer)
        return mean_tally([self._played(courses, arm, proposer, n) for n in range(NUM_PLAYS)])

    def _played(
        self, courses: Sequence[Course], arm: ReplayArm, proposer: Proposer, number: int
    ) -> Tally:
        """Play it once; each time a pace of its own begins to learn."""
        assert arm.pace is not None
        assert self.costs is not None
        grows, seed = arm.tree is not None, NUM_PLAYS * self.seed + number
        player = Player(self.costs, arm.draft, self.sampling, grows, seed)
        traces = player.play(courses, arm.pace(), proposer.max_depth)
        clock = [clock_of(trace, self.costs) for trace in traces]
        return known(Tally.of(traces, clock), ("prefill_seconds", "overlap", "bound"))

    def _courses(self, arm: ReplayArm, proposer: Proposer) -> list[Course]:
        """Say what chains of each depth would accept, wherever they begin."""
        if arm.closed is None:
            return courses_along(self.texts, proposer, self.verifier.vocab_size, self.sampling)
        chains = {
            str(depth): replace(arm.closed, tree=Chain(depth))
            for depth in range(1, proposer.max_depth + 1)
        }
        found = self._replayed(proposer, chains)
        return courses_of({int(depth): parts for depth, parts in found.items()})

    def _replayed(
        self, proposer: Proposer, closed: Mapping[str, ClosedArm]
    ) -> dict[str, list[Replayed]]:
        """Replay arms of one draft in closed form."""
        deepest = max(arm.tree.max_depth for arm in closed.values())
        return replay(
            self.texts,
            distributions_of(proposer, self.verifier, self._states, deepest),
            closed,
            self.sampling,
            self.verifier,
            self.verifier.vocab_size,
            self.seed,
            self.rows,
            self.stopping,
        )

    def _seconds_of(self, arm: ReplayArm, closed: ClosedArm) -> Priced | None:
        """Predict steps of an arm down to each depth, if what they cost is known."""
        costs, tree = self.costs, closed.tree
        if costs is None or not costs.knows(arm.draft) or closed.may_lack(self.sampling):
            return None
        return None if tree.may_stop else partial(costs.of_tree, arm.draft, tree)

    def _decoded_along(self, arm: ReplayArm) -> Tally:
        """Replay an arm by decoding on the texts."""
        given = self.verifier, self.sampling, self.stopping, self.batch, self.seed, self._states
        traces = jump(self.texts, arm.make(self.verifier), *given)
        if self.costs is not None and self.costs.knows(arm.draft):
            traces, clock = with_seconds(traces, self.costs, arm.draft, arm.tree)
            return known(Tally.of(traces, clock), ("prefill_seconds", "overlap", "bound"))
        return known(Tally.of(traces), ("seconds", "overlap", "bound"))


def distributions_of(
    proposer: Proposer,
    verifier: HFCausalLM,
    states: States | None = None,
    depth: int | None = None,
) -> ModelDistributions | HeadDistributions:
    """Return what a proposer's candidates are drawn from; heads are asked so many tokens ahead.

    Raises:
        Unfit: neither a model nor heads draft.
    """
    if isinstance(proposer, DraftModel | Cascade):  # whose chains are its middle model's
        return ModelDistributions(proposer.model)
    if isinstance(proposer, FeatureProposer):
        return HeadDistributions(proposer.heads, verifier, states, depth)
    raise Unfit(f"{type(proposer).__name__}: neither a draft model nor heads")


def known(tally: Tally, unknown: tuple[str, ...]) -> Tally:
    """Leave out what a stand-in for the verifier knows nothing of."""
    kept = {name: column for name, column in tally.columns.items() if not name.endswith(unknown)}
    return Tally(tally.prompt_ids, tally.categories, kept)

"""Replay arms on texts: which engine serves an arm, and what arms share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specdec.core.errors import Unfit
from specdec.lab.arm import sampling_of, stopping_of
from specdec.lab.identity import draft_of
from specdec.lab.replay.arms import ReplayArm
from specdec.lab.spec import ArmSpec
from specdec.lm.hf import HFCausalLM
from specdec.metrics import Tally
from specdec.proposer.heads import HeadsProposer
from specdec.recording.hidden_states import States
from specdec.recording.texts import Text
from specdec.replay.arm import ClosedArm
from specdec.replay.closed_form import Rows, replay
from specdec.replay.costs import Costs, Seconds, with_seconds
from specdec.replay.draft_distributions import HeadDistributions, ModelDistributions
from specdec.replay.expected_steps import tally
from specdec.replay.redraft import jump
from specdec.results.progress import Progress


def replay_all(
    arms: Mapping[str, ReplayArm],
    texts: Sequence[Text],
    verifier: HFCausalLM,
    batch: int = 64,
    seed: int = 0,
    rows: Rows | None = None,
    costs: Costs | None = None,
) -> dict[str, Tally]:
    """Replay the arms: those that draw from the same distributions together, others one by one.

    Where drafts are made one by one, `batch` texts are read at a time. `rows` are the distributions
    that the texts were drawn from, as far as their recording has them; else the verifier is asked.
    With `costs` seconds are predicted of those arms whose proposer they know.
    """

    for line in unpriced(arms, costs):
        print(line)
    states = States(verifier, batch)
    groups: dict[str, dict[str, ReplayArm]] = {}
    tallies: dict[str, Tally] = {}
    with Progress(len(arms), "replay", "arm") as bar:
        for name, arm in arms.items():
            if arm.closed is None:
                tallies[name] = jumped(arm.spec, texts, verifier, states, batch, seed, costs)
                bar.update()
            else:
                groups.setdefault(draft_of(arm.spec.proposer).known_by, {})[name] = arm
        for group in groups.values():
            tallies |= in_closed_form(group, texts, verifier, states, seed, rows, costs)
            bar.update(len(group))
    return {name: tallies[name] for name in arms}


def unpriced(arms: Mapping[str, ReplayArm], costs: Costs | None) -> list[str]:
    """Say of which proposers no speed will be predicted, because nobody measured them."""
    if costs is None:
        return []
    drafts = [draft_of(arm.spec.proposer) for arm in arms.values()]
    return [
        f"no speed is predicted for {key.name}: costs say {costs.nothing_about(key)}"
        for key in {draft.known_by: draft for draft in drafts}.values()
        if not costs.knows(key)
    ]


def in_closed_form(
    arms: Mapping[str, ReplayArm],
    texts: Sequence[Text],
    verifier: HFCausalLM,
    states: States,
    seed: int,
    rows: Rows | None,
    costs: Costs | None,
) -> dict[str, Tally]:
    """Replay arms that draw from the same distributions."""
    first = next(iter(arms.values())).spec
    closed = {name: arm.closed for name, arm in arms.items() if arm.closed is not None}
    found = replay(
        texts,
        laws_of(first, verifier, states),
        closed,
        sampling_of(first, verifier),
        verifier,
        verifier.vocab_size,
        seed,
        rows,
        stopping_of(first, verifier),
    )
    return {
        name: tally(
            parts,
            closed[name].num_drafted,
            seconds_of(arms[name].spec, closed[name], costs),
            None if costs is None else costs.plain,
        )
        for name, parts in found.items()
    }


def seconds_of(spec: ArmSpec, closed: ClosedArm, costs: Costs | None) -> Sequence[Seconds] | None:
    """Predict steps of an arm down to each depth, if what they cost is known."""
    draft = draft_of(spec.proposer)
    if costs is None or not costs.knows(draft) or closed.may_lack(spec.sampling.build()):
        return None
    return costs.of_tree(draft, closed.tree)


def laws_of(
    spec: ArmSpec, verifier: HFCausalLM, states: States | None = None
) -> ModelDistributions | HeadDistributions:
    """Load what an arm's candidates are drawn from.

    Raises:
        Unfit: neither a model nor heads draft.
    """
    draft = spec.proposer.draft_model
    if draft is not None:
        return ModelDistributions(draft.build())
    proposer = spec.proposer.build_for(verifier)
    if not isinstance(proposer, HeadsProposer):
        raise Unfit(f"proposer={spec.proposer.name}: neither a draft model nor heads")
    return HeadDistributions(proposer.heads, verifier, states)


def jumped(
    spec: ArmSpec,
    texts: Sequence[Text],
    verifier: HFCausalLM,
    states: States,
    batch: int,
    seed: int,
    costs: Costs | None,
) -> Tally:
    """Replay an arm by decoding on the texts."""
    proposer, draft = spec.proposer.build_for(verifier), draft_of(spec.proposer)
    sampling, stopping = sampling_of(spec, verifier), stopping_of(spec, verifier)
    traces = jump(texts, proposer, verifier, sampling, stopping, batch, seed, states)
    if costs is not None and costs.knows(draft):
        policy = spec.tree.build() if spec.proposer.grows_trees else None
        traces, clock = with_seconds(traces, costs, draft, policy)
        return known(Tally.of(traces, clock), ("prefill_seconds", "overlap", "bound"))
    return known(Tally.of(traces), ("seconds", "overlap", "bound"))


def known(tally: Tally, unknown: tuple[str, ...]) -> Tally:
    """Leave out what a stand-in for the verifier knows nothing of."""
    kept = {name: column for name, column in tally.columns.items() if not name.endswith(unknown)}
    return Tally(tally.prompt_ids, tally.categories, kept)

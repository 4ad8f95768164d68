"""Replay configurations of `decode` on texts: which engine serves an arm, and what they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from specdec.command.replay_grid import closed_arm
from specdec.lab.arm import sampling_of, stopping_of
from specdec.lab.build import build
from specdec.lab.identity import draft_of
from specdec.lm.hf import HFCausalLM
from specdec.metrics import Tally
from specdec.recording.hidden_states import States
from specdec.recording.texts import Text
from specdec.replay.arm import ClosedArm
from specdec.replay.closed_form import Rows, replay
from specdec.replay.costs import Costs, Seconds, with_seconds
from specdec.replay.draft_distributions import DraftLaws, HeadLaws
from specdec.replay.expected_steps import tally
from specdec.replay.redraft import jump
from specdec.results.progress import Progress


def replay_all(
    arms: Mapping[str, DictConfig],
    texts: Sequence[Text],
    verifier: HFCausalLM,
    batch: int = 64,
    seed: int = 0,
    rows: Rows | None = None,
    costs: Costs | None = None,
) -> dict[str, Tally]:
    """Replay the arms: those that draw from the same laws together, others one by one.

    Where drafts are made one by one, `batch` texts are read at a time. `rows` are the laws that the
    texts were drawn from, as far as their recording has them; else the verifier is asked. With
    `costs` seconds are predicted of those arms whose proposer they know.
    """

    for line in unpriced(arms, costs):
        print(line)
    states = States(verifier, batch)
    groups: dict[str, dict[str, DictConfig]] = {}
    tallies: dict[str, Tally] = {}
    with Progress(len(arms), "replay", "arm") as bar:
        for name, arm in arms.items():
            if closed_arm(arm) is None:
                tallies[name] = jumped(arm, texts, verifier, states, batch, seed, costs)
                bar.update()
            else:
                groups.setdefault(draft_of(arm).known_by, {})[name] = arm
        for group in groups.values():
            tallies |= in_closed_form(group, texts, verifier, states, seed, rows, costs)
            bar.update(len(group))
    return {name: tallies[name] for name in arms}


def unpriced(arms: Mapping[str, DictConfig], costs: Costs | None) -> list[str]:
    """Say of which proposers no speed will be predicted, because nobody measured them."""
    keys = {draft_of(arm).known_by: draft_of(arm) for arm in arms.values() if costs is not None}
    return [
        f"no speed is predicted for {key.name}: costs say {costs.nothing_about(key)}"
        for key in keys.values()
        if costs is not None and not costs.knows(key)
    ]


def in_closed_form(
    arms: Mapping[str, DictConfig],
    texts: Sequence[Text],
    verifier: HFCausalLM,
    states: States,
    seed: int,
    rows: Rows | None,
    costs: Costs | None,
) -> dict[str, Tally]:
    """Replay arms that draw from the same laws."""
    first = next(iter(arms.values()))
    closed = {name: closed_arm(arm) for name, arm in arms.items()}
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
            seconds_of(arms[name], closed[name], costs),
            None if costs is None else costs.plain,
        )
        for name, parts in found.items()
    }


def seconds_of(arm: DictConfig, closed: ClosedArm, costs: Costs | None) -> Sequence[Seconds] | None:
    """Predict steps of an arm down to each depth, if what they cost is known."""
    if costs is None or not costs.knows(draft_of(arm)) or closed.may_lack(build(arm.sampling)):
        return None
    return costs.of_tree(draft_of(arm), closed.tree)


def laws_of(arm: DictConfig, verifier: HFCausalLM, states: States | None = None) -> Any:
    """Load what an arm's candidates are drawn from."""
    if "model" in arm.proposer:
        return DraftLaws(build(arm.draft))
    proposer = build(arm.proposer, verifier=verifier)
    return HeadLaws(proposer.heads, verifier, states)


def jumped(
    arm: DictConfig,
    texts: Sequence[Text],
    verifier: HFCausalLM,
    states: States,
    batch: int,
    seed: int,
    costs: Costs | None,
) -> Tally:
    """Replay an arm by decoding on the texts."""
    given = {"verifier": verifier} if "verifier" in arm.proposer else {}
    proposer = build(arm.proposer, **given)
    sampling, stopping = sampling_of(arm, verifier), stopping_of(arm, verifier)
    traces = jump(texts, proposer, verifier, sampling, stopping, batch, seed, states)
    if costs is not None and costs.knows(draft_of(arm)):
        policy = build(arm.tree) if "tree" in arm.proposer else None
        traces, clock = with_seconds(traces, costs, draft_of(arm), policy)
        return known(Tally.of(traces, clock), ("prefill_seconds", "overlap", "bound"))
    return known(Tally.of(traces), ("seconds", "overlap", "bound"))


def known(tally: Tally, unknown: tuple[str, ...]) -> Tally:
    """Leave out what a stand-in for the verifier knows nothing of."""
    kept = {name: column for name, column in tally.columns.items() if not name.endswith(unknown)}
    return Tally(tally.prompt_ids, tally.categories, kept)

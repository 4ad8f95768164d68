"""Replay configurations of `decode` on texts: which engine serves an arm, and what they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from specdec.experiments.app import build
from specdec.experiments.replay_plan import closed_arm

if TYPE_CHECKING:
    from specdec.lm.hf import HFCausalLM
    from specdec.metrics import Tally
    from specdec.replay.jump import States
    from specdec.replay.texts import Text


def replay_all(
    arms: Mapping[str, DictConfig],
    texts: Sequence[Text],
    verifier: HFCausalLM,
    batch: int = 16,
    seed: int = 0,
) -> dict[str, Tally]:
    """Replay the arms: those that draw from the same laws together, others one by one.

    Where drafts are made one by one, `batch` texts are read at a time.
    """
    from tqdm import tqdm

    from specdec.replay.jump import States

    states = States(verifier, batch)
    groups: dict[str, dict[str, DictConfig]] = {}
    tallies: dict[str, Tally] = {}
    with tqdm(total=len(arms), desc="replay", unit="arm", disable=None) as bar:
        for name, arm in arms.items():
            if closed_arm(arm) is None:
                tallies[name] = jumped(arm, texts, verifier, states, batch, seed)
                bar.update()
            else:
                groups.setdefault(source_of(arm), {})[name] = arm
        for group in groups.values():
            tallies |= in_closed_form(group, texts, verifier, seed)
            bar.update(len(group))
    return {name: tallies[name] for name in arms}


def source_of(arm: DictConfig) -> str:
    """Name what an arm's candidates are drawn from."""
    node = arm.proposer.model if "model" in arm.proposer else arm.proposer
    return f"{node._target_} {node.path} {node.get('dtype')}"


def in_closed_form(
    arms: Mapping[str, DictConfig], texts: Sequence[Text], verifier: HFCausalLM, seed: int
) -> dict[str, Tally]:
    """Replay arms that draw from the same laws."""
    from specdec.replay.closed import replay
    from specdec.replay.renewal import tally

    first = next(iter(arms.values()))
    closed = {name: closed_arm(arm) for name, arm in arms.items()}
    found = replay(
        texts,
        laws_of(first, verifier),
        closed,
        build(first.sampling),
        verifier,
        verifier.vocab_size,
        seed,
    )
    return {name: tally(parts, closed[name].num_drafted) for name, parts in found.items()}


def laws_of(arm: DictConfig, verifier: HFCausalLM) -> Any:
    """Load what an arm's candidates are drawn from."""
    from specdec.replay.laws import DraftLaws, HeadLaws

    if "model" in arm.proposer:
        return DraftLaws(build(arm.draft))
    proposer = build(arm.proposer, verifier=verifier)
    return HeadLaws(proposer.heads, verifier)


def jumped(
    arm: DictConfig,
    texts: Sequence[Text],
    verifier: HFCausalLM,
    states: States,
    batch: int,
    seed: int,
) -> Tally:
    """Replay an arm by decoding on the texts."""
    from specdec.metrics import Tally
    from specdec.replay.jump import jump

    given = {"verifier": verifier} if "verifier" in arm.proposer else {}
    proposer = build(arm.proposer, **given)
    sampling = build(arm.sampling)
    traces = jump(texts, proposer, verifier, sampling, verifier.end_ids, batch, seed, states)
    return untimed(Tally.of(traces))


def untimed(tally: Tally) -> Tally:
    """Leave out what a stand-in for the verifier knows nothing of."""
    from specdec.metrics import Tally

    unknown = ("seconds", "overlap", "bound")
    kept = {name: column for name, column in tally.columns.items() if not name.endswith(unknown)}
    return Tally(tally.prompt_ids, tally.categories, kept)

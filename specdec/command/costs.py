"""Measure what steps cost: `python experiments/costs.py output=costs.json`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from specdec.command.cost_shapes import TimedShape, planned
from specdec.command.entry import Entry
from specdec.command.options import arm_spec
from specdec.core.errors import UserError, require, require_int
from specdec.core.jsonl import require_writable
from specdec.core.trace import Trace
from specdec.lab.arm import Arm, build_arm
from specdec.lab.checks import check_arm
from specdec.lab.interleaving import expect, interleave
from specdec.lab.measured_on import measured_on
from specdec.lab.spec import ArmSpec
from specdec.lm.fingerprint import fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.prompts import Prompt
from specdec.replaying.cost_fitting import Filler, Timed, fitted
from specdec.replaying.costs import Costs, Curve
from specdec.replaying.doubts import doubts

FILLER = "filler"


def task(config: DictConfig) -> None:
    """Run everything in turns, fit the curves, write and print them."""
    shared = check_options(config)
    output = Path(config.output)
    require_writable(output)
    shapes, specs = planned(config)
    prompts: Sequence[Prompt] = shared.prompts.load()
    verifier = shared.verifier.build()
    running = competitors(config, specs, verifier)
    prompts = next(iter(running.values())).choose(prompts)
    expect(list(running.values()), prompts)
    print(f"{len(running)} kinds of steps on {len(prompts)} prompts, {config.rounds} times")
    timed = believed(running, shapes, prompts, config.rounds)
    costs = fitted(timed, circumstances_of(shared, verifier, timed))
    costs.write(output)
    show(costs)
    print(f"written: {output}; predict speed with costs={output}")


def check_options(config: DictConfig) -> ArmSpec:
    """Refuse what is wrong before a model is loaded; returns what all that is timed shares."""
    if OmegaConf.is_missing(config, "output"):
        raise UserError("output: missing; expected output=costs.json")
    good = isinstance(config.output, str) and bool(config.output)
    require(good, "output", config.output, "a file")
    require(not Path(config.output).is_dir(), "output", config.output, "a file, not a folder")
    for name in ("proposers", "options"):
        good = isinstance(config[name], ListConfig)
        require(good, name, config[name], 'a list, [ngram,"medusa proposer.path=my_heads"]')
    for name in ("tokens", "widths"):
        good = isinstance(config[name], ListConfig) and len(config[name]) > 0
        require(good, name, config[name], "a list of numbers, [1,4,16]")
        for number in config[name]:
            require_int(name, number, 1)
    require_int("rounds", config.rounds, 1)
    shared = arm_spec(config)
    check_arm(shared)
    return shared


def competitors(
    config: DictConfig, specs: Mapping[str, ArmSpec], verifier: HFCausalLM
) -> dict[str, Arm]:
    """Build everything that is timed: each shape, and fillers of each size."""
    running = {"none": build_arm(specs["none"], verifier, "none")}
    for arm in fillers(config, running["none"]):
        running[arm.name] = arm
    for name, spec in specs.items():
        if name not in running:
            running[name] = build_arm(spec, verifier, name)
    return running


def fillers(config: DictConfig, plain: Arm) -> Iterator[Arm]:
    """Yield arms that only make the verifier read: chains and trees of each size."""
    for tokens in config.tokens:
        for branches in (False, True):
            # A tree of two tokens is a chain.
            if tokens > (2 if branches else 0):
                decoder = copy.copy(plain.decoder)
                decoder.proposer = Filler(tokens - 1, branches)
                name = f"{FILLER} {'tree' if branches else 'chain'} {tokens}"
                yield replace(plain, name=name, decoder=decoder)


def measured(
    running: dict[str, Arm], prompts: Sequence[Prompt], rounds: int
) -> dict[str, list[Trace]]:
    """Decode all prompts with everything, in turns."""
    arms = list(running.values())
    traces: dict[str, list[Trace]] = {name: [] for name in running}
    for _ in range(rounds):
        for arm, trace in interleave(arms, prompts, arms[0].turn_size):
            traces[arm.name].append(trace)
    return traces


def believed(
    running: dict[str, Arm], shapes: dict[str, TimedShape], prompts: Sequence[Prompt], rounds: int
) -> list[Timed]:
    """Time everything, and once more if what came of it cannot be true.

    Raises:
        UserError: it cannot be true again.
    """
    timed = timings(running, shapes, measured(running, prompts, rounds))
    found = doubts(timed)
    if found:
        print(f"measured again, since this cannot be: {'; '.join(found)}")
        timed = timings(running, shapes, measured(running, prompts, rounds))
        found = doubts(timed)
    if found:
        raise UserError(f"{found[0]}: this cannot be; measure again on a quiet machine")
    return timed


def timings(
    running: dict[str, Arm], shapes: dict[str, TimedShape], traces: dict[str, list[Trace]]
) -> list[Timed]:
    """Say of each arm's steps what they were to tell."""
    found: list[Timed] = []
    for name in running:
        steps = [step for trace in traces[name] for step in trace.steps]
        shape = shapes.get(name)
        if shape is None:
            found.append(Timed(None, (), "", steps))
        else:
            found.append(Timed(shape.draft, shape.parents, shape.choice, steps))
    return found


def circumstances_of(
    shared: ArmSpec, verifier: HFCausalLM, timed: Sequence[Timed]
) -> dict[str, Any]:
    """Say under which circumstances all of it was measured."""
    return {
        "verifier": fingerprint(verifier),
        "batch": shared.batch,
        "sampling": shared.sampling.options,
        "prompts": shared.prompts.path,
        "max_new_tokens": shared.max_new_tokens,
        "num_steps": sum(len(each.steps) for each in timed),
        **measured_on(verifier),
    }


def show(costs: Costs) -> None:
    """Print the curves in milliseconds."""
    print("verifier, ms of a forward of n tokens")
    print(f"  chain: {_shown(costs.chain)}")
    print(f"  tree:  {_shown(costs.tree)}")
    for draft in costs.drafts.values():
        print(f"{draft.name}: start {1e3 * draft.start:.2f} ms, verifier x {draft.verify:.2f}")
        print(f"  the rest of a step of n tokens: {_shown(draft.other)}")
        for choice, curve in draft.level.items():
            print(f"  a level, {choice}, below n nodes: {_shown(curve)}")


def _shown(curve: Curve) -> str:
    pairs = zip(curve.sizes, curve.seconds, strict=True)
    return ", ".join(f"{size}: {1e3 * seconds:.2f}" for size, seconds in pairs)


ENTRY = Entry(task)

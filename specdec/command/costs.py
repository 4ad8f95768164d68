"""Measure what steps cost: `python experiments/costs.py output=costs.json`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from specdec.command.compose import compose_decode
from specdec.command.entry import Entry
from specdec.command.options import arm_spec, plain, proposer_part
from specdec.command.replay_grid import arm_config
from specdec.core.errors import Unfit, UserError, require, require_int
from specdec.core.jsonl import require_writable
from specdec.core.trace import Trace
from specdec.lab.arm import Arm, build_arm
from specdec.lab.checks import check_arm
from specdec.lab.compatibility import require_parts_fit
from specdec.lab.identity import draft_of
from specdec.lab.inputs import require_models
from specdec.lab.interleaving import interleave
from specdec.lab.spec import ArmSpec, ProposerPart
from specdec.lm.fingerprint import fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.prompts import Prompt
from specdec.proposer.tree_fit import heads_config
from specdec.replay.cost_fitting import Filler, Timed, fitted
from specdec.replay.costs import DRAWN, LIKELIEST, Costs, Curve, ProposerKey
from specdec.replay.doubts import doubts
from specdec.results.provenance import provenance

DEEPEST = 4  # levels: as many as there usually are heads
FILLER = "filler"


@dataclass(frozen=True)
class Shape:
    """A tree whose seconds are to be known."""

    draft: ProposerKey
    parents: tuple[int, ...]  # per level
    choice: str


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


def planned(config: DictConfig) -> tuple[dict[str, Shape], dict[str, ArmSpec]]:
    """Compose each proposer in a few shapes, by name; what cannot be is left out and named."""
    specs = {"none": _composed(["proposer=none"], {}, config)}
    shapes = {"none": Shape(draft_of(specs["none"].proposer), (), "")}
    unfit: dict[str, None] = {}
    for proposer in config.proposers:
        for plug_ins, tree, parents, choice in shapes_of(str(proposer), config):
            found = _composed([*config.options, *plug_ins], tree, config)
            try:
                require_parts_fit(found)
                require_models(found)
            except Unfit as reason:
                unfit[f"left out of {proposer}: {reason}"] = None
                continue
            name = f"{' '.join(plug_ins)} {dict(tree)}"
            specs[name] = found
            shapes[name] = Shape(draft_of(found.proposer), parents, choice)
    for reason in unfit:
        print(reason)
    return shapes, specs


def _composed(overrides: Sequence[str], tree: Mapping[str, Any], config: DictConfig) -> ArmSpec:
    """Compose the options of one arm, with what this command says for all of them."""
    found = arm_config(overrides, tree, plain(config))
    own = {text.split("=")[0].lstrip("+") for text in overrides}
    for name, value in config.draft.items():  # unless a proposer says so itself
        if f"draft.{name}" not in own:
            found.draft[name] = value
    found.batch, found.keep_candidates = config.batch, 0
    return arm_spec(found)


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


def shapes_of(
    proposer: str, config: DictConfig
) -> Iterator[tuple[list[str], dict[str, Any], tuple[int, ...], str]]:
    """Yield chains and trees of known levels: two chains tell a level from the start of a step.

    Each as plug-ins, options of the tree, parents per level and how children are chosen.
    """
    name, *options = proposer.split()
    chosen = [f"proposer={name}", *options]
    part = _proposer(chosen, config)
    if not part.grows_trees:
        for gamma in (1, DEEPEST):
            yield chosen, {"tree.gamma": gamma}, (), DRAWN
        return
    depth = depth_of(part)
    for gamma in sorted({1, depth}):
        yield chosen, {"tree.gamma": gamma}, (1,) * gamma, DRAWN
        yield [*chosen, "tree=sparse"], {"tree.paths": [[0] * gamma]}, (1,) * gamma, LIKELIEST
    for width in config.widths if depth > 1 else ():
        below = [1] * (min(depth, 3) - 1)
        parents = (1, *(width for _ in below))
        yield [*chosen, "tree=sampled"], {"tree.widths": [width, *below]}, parents, DRAWN
        paths = {"tree.paths": [[rank, *[0] * len(below)] for rank in range(width)]}
        yield [*chosen, "tree=sparse"], paths, parents, LIKELIEST


def _proposer(chosen: Sequence[str], config: DictConfig) -> ProposerPart:
    return proposer_part(compose_decode([*map(str, config.options), *chosen]))


def depth_of(proposer: ProposerPart) -> int:
    """Return how deep a proposer drafts, up to four levels."""
    if not proposer.has_heads:
        return DEEPEST
    return min(DEEPEST, heads_config(proposer.path).get("num_heads", DEEPEST))


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
    running: dict[str, Arm], shapes: dict[str, Shape], prompts: Sequence[Prompt], rounds: int
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
    running: dict[str, Arm], shapes: dict[str, Shape], traces: dict[str, list[Trace]]
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
        **provenance(verifier.device, shared.dtype, verifier.attention),
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

"""Measure what steps cost: `python experiments/costs.py output=costs.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from specdec.command.cost_shapes import planned
from specdec.command.entry import Entry
from specdec.command.options import arm_spec
from specdec.core.errors import UserError, require, require_int
from specdec.core.jsonl import require_writable
from specdec.core.protocols import Rereading
from specdec.lab.arm import build_arm
from specdec.lab.checks import check_arm
from specdec.lab.compatibility import require_decoder
from specdec.lab.costs.forward_grid import ForwardGrid, contexts_within
from specdec.lab.costs.growing import draw, require_comparable
from specdec.lab.costs.measurement import Measurement
from specdec.lab.costs.shown import about, show
from specdec.lab.costs.suitable import costs_to_decode_by
from specdec.lab.interleaving import expect
from specdec.lab.measured_on import measured_on
from specdec.lab.spec import ArmSpec
from specdec.lm.fingerprint import fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.prompts import Prompt
from specdec.replaying.costs_file import write_costs
from specdec.replaying.forwards import Forwards


def task(config: DictConfig) -> None:
    """Run everything in turns, fit the curves, write and print them."""
    shared = check_options(config)
    output = Path(config.output)
    require_writable(output)
    shapes, specs = planned(config)
    prompts: Sequence[Prompt] = shared.prompts.load()
    verifier = shared.verifier.build()
    if isinstance(verifier, Rereading):
        raise UserError(
            f"{shared.verifier.checkpoint.called}: its states cannot be rewound, and what is read"
            " once more depends on what is accepted; measure speeds with specdec-compare"
        )
    grid = grid_of(config, verifier.max_length)
    running = {name: build_arm(spec, verifier, name) for name, spec in specs.items()}
    prompts = running["none"].choose(prompts)
    expect(list(running.values()), prompts)
    circumstances = circumstances_of(shared, verifier)
    beside = forwards_beside(config.beside, circumstances["verifier"], verifier)
    require_comparable(grid, beside)
    print(f"{len(grid.shapes)} forwards, {grid.repeats} times; {len(running)} kinds of steps")
    measure = Measurement(running, shapes, prompts, grid, config.rounds)
    costs = measure.believed(circumstances)
    write_costs(costs, output)
    show(costs, list(beside.values()))
    drawn = draw(costs.forwards, list(beside.values()), output, about(costs))
    print("plots:", *(path for path in drawn if path.suffix == ".png"))
    print(f"written: {output}; predict speed with costs={output}")


def check_options(config: DictConfig) -> ArmSpec:
    """Refuse what is wrong before a model is loaded; returns what all that is timed shares."""
    if OmegaConf.is_missing(config, "output"):
        raise UserError("output: missing; expected output=costs.json")
    good = isinstance(config.output, str) and bool(config.output)
    require(good, "output", config.output, "a file")
    require(not Path(config.output).is_dir(), "output", config.output, "a file, not a folder")
    good = isinstance(config.beside, ListConfig)
    require(good, "beside", config.beside, "a list of files, [outputs/costs.json]")
    for name in ("proposers", "options"):
        good = isinstance(config[name], ListConfig)
        require(good, name, config[name], 'a list, [ngram,"medusa proposer.path=my_heads"]')
    for name in ("tokens", "contexts", "widths"):
        good = isinstance(config[name], ListConfig) and len(config[name]) > 0
        require(good, name, config[name], "a list of numbers, [1,4,16]")
        for number in config[name]:
            require_int(name, number, 1)
    require(max(config.tokens) > 2, "tokens", config.tokens, "a tree among them, of 3 at least")
    require_int("repeats", config.repeats, 1)
    require_int("rounds", config.rounds, 1)
    shared = arm_spec(config)
    require_decoder(shared.verifier, "costs are those of decoders, whose steps have one context")
    check_arm(shared)
    return shared


def grid_of(config: DictConfig, max_length: int) -> ForwardGrid:
    """Say which forwards are timed; one token is always among them: plain decoding.

    Raises:
        UserError: the context has no room for so many tokens.
    """
    tokens = sorted({1, *config.tokens})
    contexts = contexts_within(config.contexts, tokens, max_length)
    return ForwardGrid(tokens, contexts, config.batch, config.repeats)


def forwards_beside(
    files: Sequence[str], known: Mapping[str, str], verifier: HFCausalLM
) -> dict[str, Forwards]:
    """Read the forwards of other batches, by file.

    Raises:
        UserError: one is of another verifier, dtype, runtime or device.
    """
    return {each: costs_to_decode_by(each, known, verifier, {}).forwards for each in files}


def circumstances_of(shared: ArmSpec, verifier: HFCausalLM) -> dict[str, Any]:
    """Say under which circumstances all of it is measured."""
    return {
        "verifier": fingerprint(verifier),
        "batch": shared.batch,
        "sampling": shared.sampling.options,
        "prompts": shared.prompts.path,
        "max_new_tokens": shared.max_new_tokens,
        **measured_on(verifier),
    }


ENTRY = Entry(task)

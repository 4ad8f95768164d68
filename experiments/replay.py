"""Acceptance without decoding: `python experiments/replay.py recording=DIR`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from specdec.experiments.app import build, run
from specdec.experiments.replay_plan import closed_arm, plan, rule_of

from specdec.core.errors import UserError, require, require_int

if TYPE_CHECKING:
    from specdec.lm.hf import HFCausalLM
    from specdec.metrics import Tally
    from specdec.replay.jump import States
    from specdec.replay.recording import Recording


def task(config: DictConfig) -> None:
    """Replay every configuration, write a run directory for each, and report them."""
    # Here and not above, because torch takes seconds to import and --help should not wait.
    from specdec.experiments.replay_check import checked
    from specdec.experiments.report import report

    from specdec.lm.fingerprint import fingerprint
    from specdec.replay.recording import read_recording, require_made_for

    check_options(config)
    began = time.perf_counter()
    recording = read_recording(Path(config.recording))
    recorded = recorded_config(Path(config.recording), config)
    planned = plan(config, recorded)
    folder = Path(HydraConfig.get().runtime.output_dir)
    print(
        f"{len(planned.arms)} configurations on {len(recording.texts)} texts; results in {folder}"
    )
    for reason, number in planned.unfit.items():
        print(f"left out, {number}: {reason}")
    verifier = build(recorded.verifier)
    require_made_for(recording, fingerprint(verifier), build(recorded.sampling))
    tallies = replay_all(planned.arms, recording, verifier, config)
    for name, tally in tallies.items():
        write_run(folder / name, planned.arms[name], tally, config, verifier)
    seconds = time.perf_counter() - began
    report(folder, config.reference)
    print(f"replayed in {seconds:.1f} s, models and all")
    if config.check:
        sys.exit(checked(planned.arms, tallies, folder / "checked"))


def check_options(config: DictConfig) -> None:
    """Refuse what is wrong before anything is read."""
    if OmegaConf.is_missing(config, "recording") or not isinstance(config.recording, str):
        raise UserError("recording: expected a folder that specdec-record wrote, recording=DIR")
    for name in config.grid:
        values = config.grid[name]
        require(isinstance(values, ListConfig), f"grid.{name}", values, "a list, [1,2,4]")
    for name in ("arms", "options"):
        good = isinstance(config[name], ListConfig)
        require(good, name, config[name], 'a list of strings, ["proposer=ngram"]')
    require(isinstance(config.check, bool), "check", config.check, "true or false")
    require_int("batch", config.batch, 1)
    require_int("seed", config.seed, 0)


def recorded_config(folder: Path, config: DictConfig) -> DictConfig:
    """Return how the texts were decoded, on the device that was asked for here."""
    from specdec.experiments.recorded_texts import read_config

    found = read_config(folder, "run.yaml")
    if config.device is not None:
        found.device = found.verifier.device = config.device
    return found


def replay_all(
    arms: Mapping[str, DictConfig], recording: Recording, verifier: HFCausalLM, config: DictConfig
) -> dict[str, Tally]:
    """Replay the arms: those that draw from the same laws together, others one by one."""
    from tqdm import tqdm

    from specdec.replay.jump import States

    states = States(verifier, config.batch)
    groups: dict[str, dict[str, DictConfig]] = {}
    tallies: dict[str, Tally] = {}
    with tqdm(total=len(arms), desc="replay", unit="arm", disable=None) as bar:
        for name, arm in arms.items():
            if closed_arm(arm) is None:
                tallies[name] = jumped(arm, recording, verifier, config, states)
                bar.update()
            else:
                groups.setdefault(source_of(arm), {})[name] = arm
        for group in groups.values():
            tallies |= in_closed_form(group, recording, verifier, config.seed)
            bar.update(len(group))
    return {name: tallies[name] for name in arms}


def source_of(arm: DictConfig) -> str:
    """Name what an arm's candidates are drawn from."""
    node = arm.proposer.model if "model" in arm.proposer else arm.proposer
    return f"{node._target_} {node.path} {node.get('dtype')}"


def in_closed_form(
    arms: Mapping[str, DictConfig], recording: Recording, verifier: HFCausalLM, seed: int
) -> dict[str, Tally]:
    """Replay arms that draw from the same laws."""
    from specdec.replay.closed import replay
    from specdec.replay.renewal import tally

    first = next(iter(arms.values()))
    closed = {name: closed_arm(arm) for name, arm in arms.items()}
    found = replay(
        recording.texts,
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
    recording: Recording,
    verifier: HFCausalLM,
    config: DictConfig,
    states: States,
) -> Tally:
    """Replay an arm by decoding on the texts."""
    from specdec.metrics import Tally
    from specdec.replay.jump import jump

    given = {"verifier": verifier} if "verifier" in arm.proposer else {}
    proposer = build(arm.proposer, **given)
    sampling = build(arm.sampling)
    ends, batch, seed = verifier.end_ids, config.batch, config.seed
    traces = jump(recording.texts, proposer, verifier, sampling, ends, batch, seed, states)
    return untimed(Tally.of(traces))


def untimed(tally: Tally) -> Tally:
    """Leave out what a stand-in for the verifier knows nothing of."""
    from specdec.metrics import Tally

    unknown = ("seconds", "overlap", "bound")
    kept = {name: column for name, column in tally.columns.items() if not name.endswith(unknown)}
    return Tally(tally.prompt_ids, tally.categories, kept)


def write_run(
    path: Path, arm: DictConfig, tally: Tally, config: DictConfig, verifier: HFCausalLM
) -> None:
    """Write what would be a run directory, had it been decoded; its provenance says that."""
    from specdec.experiments.naming import files_of, identity_of

    from specdec.metrics import summarize
    from specdec.report.options import options
    from specdec.report.provenance import provenance
    from specdec.report.run_dir import RunDir

    facts = provenance(verifier.device, arm.dtype, verifier.attention)
    facts |= {"files": files_of(options(arm)), "replayed": config.recording}
    called = {"arm": path.name, "rule": rule_of(arm), "lossless": True, "peak_memory_bytes": None}
    with RunDir(path, arm, identity_of(arm), resume=False) as run_dir:
        run_dir.begin(facts, {})
        run_dir.summarize({**called, **summarize(tally)}, tally)


def main() -> None:
    """Console script `specdec-replay`."""
    run(task, "replay")


if __name__ == "__main__":
    main()

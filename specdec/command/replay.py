"""Acceptance without decoding: `python experiments/replay.py recording=DIR`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from specdec.command.entry import Entry
from specdec.command.replay_grid import noisy_again, plan
from specdec.command.report import report
from specdec.core.errors import UserError, require, require_int
from specdec.core.jsonl import require_writable
from specdec.lab.arm import sampling_of
from specdec.lab.costs.suitable import costs_to_predict_by
from specdec.lab.identity import content_of, identity_of, materials_of
from specdec.lab.measured_on import measured_on
from specdec.lab.rendered_runs import read_spec
from specdec.lab.replay.agreement import checked
from specdec.lab.replay.arms import rule_of
from specdec.lab.replay.ranking import choices, show
from specdec.lab.replay.regret import regrets
from specdec.lab.replay.regret import show as show_regrets
from specdec.lab.replay.replayer import Replayer
from specdec.lab.spec import ArmSpec
from specdec.lm.fingerprint import fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.metrics import Tally, summarize
from specdec.recording.recorded import read_recording, require_made_for
from specdec.results.run_dir import RunDir


def task(config: DictConfig) -> None:
    """Replay every configuration, write a run directory for each, and report them."""
    check_options(config)
    began = time.perf_counter()
    recording = read_recording(Path(config.recording))
    recorded = recorded_spec(Path(config.recording), config.device)
    planned = plan(config, recorded.options)
    folder = Path(HydraConfig.get().runtime.output_dir)
    require_writable(folder / "report.html")
    print(
        f"{len(planned.arms)} configurations on {len(recording.texts)} texts; results in {folder}"
    )
    for reason, number in planned.unfit.items():
        print(f"left out, {number}: {reason}")
    verifier = recorded.verifier.build()
    reader = fingerprint(verifier)
    sampling = sampling_of(recorded, verifier)
    require_made_for(recording, reader, sampling)
    costs = None
    if config.costs is not None:
        costs = costs_to_predict_by(config.costs, reader, verifier)
    replayer = Replayer.of(recording, verifier, sampling, config.batch, config.seed, costs)
    tallies = replayer.replay(planned.arms)
    lost = regrets(planned.specs, planned.arms, tallies)
    for name, tally in tallies.items():
        extra = lost[name].to_row() if name in lost else {}
        write_run(folder / name, planned.specs[name], tally, config, verifier, extra)
    seconds = time.perf_counter() - began
    report(folder, config.reference)
    if costs is not None:
        show(choices(planned.arms, tallies))
    show_regrets(lost)
    print(f"replayed in {seconds:.1f} s, models and all")
    if config.check:
        noisy = partial(noisy_again, planned.configs)
        sys.exit(checked(planned.specs, tallies, folder / "checked", noisy))


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
    good = config.costs is None or isinstance(config.costs, str)
    require(good, "costs", config.costs, "a file that specdec-costs wrote")
    require(isinstance(config.check, bool), "check", config.check, "true or false")
    require_int("batch", config.batch, 1)
    require_int("seed", config.seed, 0)


def recorded_spec(folder: Path, device: str | None) -> ArmSpec:
    """Return how the texts were decoded, on the device that is wanted here, if one is.

    Raises:
        UserError: a notebook recorded them, which knows no options.
    """
    if not (folder / "run.yaml").is_file():
        raise UserError(
            f"recording={str(folder)!r}: made by sd.record, of a model and not of options; replay"
            " it with sd.replay, or record with specdec-record"
        )
    names = ("device", "verifier.device") if device is not None else ()
    return read_spec(folder, "run.yaml", dict.fromkeys(names, device))


def write_run(
    path: Path,
    spec: ArmSpec,
    tally: Tally,
    config: DictConfig,
    verifier: HFCausalLM,
    extra: Mapping[str, object],
) -> None:
    """Write what would be a run directory, had it been decoded; its provenance says that.

    `extra` is what its summary has beside the metrics of the tally.
    """
    found = measured_on(verifier)
    known = materials_of(spec)
    sources = {"replayed": config.recording, "costs": config.costs}
    files = {name: content_of(path) for name, path in sources.items() if path is not None}
    found |= {**sources, **known, "files": {**files, **known["files"]}}
    called = {"arm": path.name, "rule": rule_of(spec), "lossless": True, "peak_memory_bytes": None}
    with RunDir(path, spec.options, identity_of(spec), resume=False) as run_dir:
        run_dir.begin(found, {})
        run_dir.summarize({**called, **summarize(tally), **extra}, tally)


ENTRY = Entry(task)

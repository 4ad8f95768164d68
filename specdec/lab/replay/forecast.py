"""What `compare` can say of its arms before it decodes: which of them are worth it, by replay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specdec.core.errors import Unfit
from specdec.lab.arm import sampling_of
from specdec.lab.costs.suitable import costs_to_decode_by
from specdec.lab.replay.arms import ReplayArm
from specdec.lab.replay.ranking import choices
from specdec.lab.replay.replayer import Replayer
from specdec.lab.spec import ArmSpec
from specdec.lm.fingerprint import fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.metrics import Estimate, Tally, block_efficiency
from specdec.recording.recorded import read_recording, require_made_for
from specdec.replaying.costs import Costs
from specdec.runtime.choice import EAGER

# How far predicted speeds are off, one time in two; of tau replay knows the mean, not the texts.
MARGIN = 0.1


def foresee(
    specs: Mapping[str, ArmSpec], folder: Path, costs_file: str | None, verifier: HFCausalLM
) -> None:
    """Print what arms are expected to reach, and which are worth decoding.

    Args:
        specs: the arms, which share their sampling, by name.
        folder: of a recording.
        costs_file: of `specdec-costs`; None: no speed is predicted.
        verifier: of the arms.

    Raises:
        UserError: the recording or the costs are not of this verifier and sampling, or damaged, or
            the costs are of another runtime or device.
    """
    recording, reader = read_recording(folder), fingerprint(verifier)
    shared = next(iter(specs.values()))
    sampling = sampling_of(shared, verifier)
    require_made_for(recording, reader, sampling)
    costs = None
    if costs_file is not None:
        costs = costs_to_decode_by(costs_file, reader, verifier, wanted_of(specs))
    able, unknown = replayable(specs, costs is not None)
    tallies = Replayer.of(recording, verifier, sampling, costs=costs).replay(able)
    show(able, tallies, unknown, costs)


def wanted_of(specs: Mapping[str, ArmSpec]) -> dict[str, Any]:
    """Return under which circumstances the arms are to be decoded, as far as options say."""
    shared = next(iter(specs.values()))
    drafts = [part for spec in specs.values() if (part := spec.proposer.draft_model) is not None]
    found = {"runtime": shared.verifier.get("runtime") or EAGER, "batch": shared.batch}
    if drafts:
        runtimes = sorted({str(part.get("runtime") or EAGER) for part in drafts})
        found["draft_runtime"] = ", ".join(runtimes)
    return found


def replayable(
    specs: Mapping[str, ArmSpec], has_costs: bool
) -> tuple[dict[str, ReplayArm], dict[str, str]]:
    """Part the arms that can be replayed from the others, with the reason."""
    able: dict[str, ReplayArm] = {}
    unknown: dict[str, str] = {}
    for name, spec in specs.items():
        try:
            able[name] = ReplayArm.of(spec, has_costs)
        except Unfit as reason:
            unknown[name] = str(reason)
    return able, unknown


def show(
    arms: Mapping[str, ReplayArm],
    tallies: Mapping[str, Tally],
    unknown: Mapping[str, str],
    costs: Costs | None,
) -> None:
    """Print an arm a line, and the verdict."""
    speeds = speeds_of(arms, tallies) if costs is not None else {}
    measure = speeds or {name: block_efficiency(tally) for name, tally in tallies.items()}
    what = "speedup" if speeds else "tau"
    # What nobody measured the costs of may be worth it, too.
    worth = [*worth_decoding(measure), *(name for name in tallies if name not in measure)]
    print("beforehand, by replay:")
    for name, tally in tallies.items():
        faster = speeds.get(name)
        speed = f", predicted speedup {_shown(faster)}" if faster else ""
        verdict = "" if name in worth else f"; {what} is too low to win"
        print(f"  {name}: tau {_shown(block_efficiency(tally))}{speed}{verdict}")
    for name, reason in unknown.items():
        print(f"  {name}: unknown; {reason}")
    print(f"worth decoding: {', '.join([*worth, *unknown]) or 'none'}")


def speeds_of(arms: Mapping[str, ReplayArm], tallies: Mapping[str, Tally]) -> dict[str, Estimate]:
    """Predict the speedups of those arms of whose steps the costs are known."""
    return {choice.name: choice.speedup for choice in choices(arms, tallies)}


def worth_decoding(measure: Mapping[str, Estimate]) -> list[str]:
    """Name the arms that may be the best: whose interval comes within a tenth of it."""
    values = {name: each.value for name, each in measure.items() if each.value is not None}
    best = max(values.values(), default=0.0)
    ends = {name: measure[name].high or value for name, value in values.items()}
    return [name for name, end in ends.items() if end >= (1 - MARGIN) * best]


def _shown(estimate: Estimate) -> str:
    if estimate.value is None:
        return "unknown"
    between = "" if estimate.low is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{between}"

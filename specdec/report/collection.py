"""What a folder of runs holds: runs, arms that pool them, and settings that arms share."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.metrics import Tally
from specdec.report.labels import COSTS, RECORDING, STEPS, TOKENS


@dataclass(frozen=True)
class Run:
    """A complete run directory."""

    path: Path
    options: Mapping[str, Any]  # by the names that they have
    known: Mapping[str, Any]  # by what decides numbers; see `known_by`
    proposes_nothing: bool
    circumstances: Mapping[str, Any]  # and digests of the prompts and the verifier
    tally: Tally
    provenance: Mapping[str, Any]
    training_tokens: int | None  # of its heads or its draft
    lossless: bool
    peak_memory_bytes: int | None
    cut_short: bool = False  # an arm of a comparison that was interrupted
    regret: Mapping[str, Any] | None = None  # of a replayed arm that chooses its depths


@dataclass(frozen=True)
class ReportedArm:
    """Runs that differ in nothing but their seed, pooled: a prompt stays one unit."""

    label: str
    options: Mapping[str, Any]  # without the seed; training steps are given as tokens, too
    runs: Mapping[int, Run]  # by seed
    tally: Tally

    @property
    def telling(self) -> dict[str, Any]:
        """The options without training steps, where these are given as tokens."""
        known = TOKENS in self.options
        return {n: value for n, value in self.options.items() if not (known and n == STEPS)}

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is proposed: one token at a time."""
        return all(run.proposes_nothing for run in self.runs.values())

    @property
    def lossless(self) -> bool:
        """Whether its texts have exactly the verifier's distribution."""
        return all(run.lossless for run in self.runs.values())


@dataclass(frozen=True)
class Setting:
    """What arms must have in common so that they are compared: prompts, verifier, machine, ..."""

    label: str
    options: Mapping[str, Any]
    arms: Sequence[ReportedArm]


@dataclass(frozen=True)
class Collection:
    """All that a folder holds."""

    folder: Path
    settings: Sequence[Setting]
    incomplete: Mapping[str, str]  # folder: state
    doubled: Sequence[str]  # folders of runs for which another one of the same options stands
    apart: Mapping[str, Sequence[Any]]  # why settings are not compared: what differs
    forced: bool = False  # compared in spite of `apart`

    @property
    def arms(self) -> list[ReportedArm]:
        """All arms of all settings."""
        return [arm for setting in self.settings for arm in setting.arms]

    @property
    def runs(self) -> list[Run]:
        """All runs of all arms."""
        return [run for arm in self.arms for run in arm.runs.values()]

    @property
    def cut_short(self) -> list[Run]:
        """Arms of comparisons that were interrupted, on the prompts that all of them finished."""
        return [run for run in self.runs if run.cut_short]

    @property
    def recordings(self) -> dict[tuple[str, str], int]:
        """What was replayed in place of decoding, and what seconds come from, by how many runs."""
        circumstances = [run.circumstances for run in self.runs]
        return Counter(
            (str(c[RECORDING]), str(c[COSTS] or "")) for c in circumstances if c[RECORDING]
        )

"""`sd.replay`: what `specdec-replay` does, with objects."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.core.errors import Unfit, UserError, require_int
from specdec.core.protocols import VerificationRule
from specdec.core.sampling import Sampling
from specdec.lab.replay.arms import ReplayArm
from specdec.lab.replay.replayer import Replayer
from specdec.lm.fingerprint import fingerprint
from specdec.lm.generation import heeded
from specdec.lm.hf import HFCausalLM
from specdec.metrics import Tally, summarize
from specdec.notebook.entrant import Entrant, Pair, pairs_of
from specdec.notebook.given import folder_of, require_verifier
from specdec.recording.recorded import Recording, read_recording, require_made_for
from specdec.report.comparison import standings
from specdec.results.flat import Frame, by_arm


@dataclass(frozen=True)
class Replay:
    """What configurations would come to; each mapping is by their names.

    Args:
        tallies: sums over the texts.
        summaries: metrics, each with its interval, and how they stand to the reference.
        left_out: the reason, of those that texts alone do not decide on.
    """

    tallies: Mapping[str, Tally]
    summaries: Mapping[str, Mapping[str, Any]]
    left_out: Mapping[str, str]

    def table(self) -> Frame:
        """Return a row for each configuration: its metrics, with `_low`, `_high` and `_n`."""
        return by_arm(self.summaries)


def replay(
    recording: Recording | str | Path,
    verifier: HFCausalLM,
    proposers: Mapping[str, Entrant],
    *,
    rule: VerificationRule | None = None,
    sampling: Sampling | None = None,
    batch: int = 64,
    seed: int = 0,
    reference: str | None = None,
) -> Replay:
    """Compute the acceptance of many configurations from one recording, without decoding.

    Fixed trees have a closed form for most rules: the expectation over all that decoding would
    draw, given the texts. Point masses, and any candidates under `sd.Match()`, are followed along
    the texts. Depths that choose themselves are for `sd.compare`, or the command, which knows what
    steps cost. Shows a progress bar.

    Args:
        recording: of `sd.record` or `specdec-record`, or its folder.
        verifier: that wrote the texts, from `sd.load`.
        proposers: by the names that the table has; `(proposer, rule)` has a rule of its own.
        rule: of those without a rule of their own; None: rejection sampling.
        sampling: of the texts, where it has processors of your own; None: what the recording says.
        batch: texts that are read at a time, where drafts are made one by one.
        seed: of candidates that have to be drawn anew.
        reference: the name that others are compared with; None: the best.

    Returns:
        Sums and summaries by name, `table()`, a pandas frame, and why some are left out.

    Raises:
        UserError: the recording is damaged, or of another verifier; or nothing can be replayed.
    """
    require_verifier(verifier)
    pairs = pairs_of(verifier, proposers, rule, reference)
    require_int("batch", batch, 1)
    require_int("seed", seed, 0)
    texts, drawn = _texts(recording, verifier, sampling)
    arms, left_out = _replayable(pairs)
    tallies = Replayer.of(texts, verifier, drawn, batch, seed).replay(arms)
    found = {name: summarize(tally) for name, tally in tallies.items()}
    known = None if reference in left_out else reference

    def pairing(name: str, other: str) -> tuple[Tally, Tally]:
        return tallies[name], tallies[other]

    stand = standings(found, known, pairing)
    return Replay(tallies, {name: found[name] | stand[name] for name in found}, left_out)


def _texts(
    recording: Recording | str | Path, verifier: HFCausalLM, sampling: Sampling | None
) -> tuple[Recording, Sampling]:
    """Read what was recorded, and say how it was drawn."""
    found = recording
    if not isinstance(found, Recording):
        found = read_recording(folder_of("recording", found))
    drawn = found.sampling_of(verifier)
    if sampling is not None:
        drawn = heeded(sampling, verifier, found.end_ids)
    require_made_for(found, fingerprint(verifier), drawn)
    return found, drawn


def _replayable(pairs: Mapping[str, Pair]) -> tuple[dict[str, ReplayArm], dict[str, str]]:
    """Part those that can be replayed from the others, with the reason."""
    arms: dict[str, ReplayArm] = {}
    left_out: dict[str, str] = {}
    for name, pair in pairs.items():
        try:
            arms[name] = ReplayArm.of_parts(*pair)
        except Unfit as reason:
            left_out[name] = str(reason)
    if not arms:
        raise UserError(f"nothing to replay: {'; '.join(dict.fromkeys(left_out.values()))}")
    return arms, left_out

"""Does the engine accept what replay expects? One configuration of each family is decoded.

What replay computes follows from the text and the distributions alone. An engine that stays
lossless and accepts less has a proposer whose state is broken: a cache that lacks a token, a wrong
position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from specdec.core.plug_ins import plug_in_name
from specdec.lab.decoding import decode_into
from specdec.lab.replay.arms import rule_of
from specdec.lab.spec import ArmSpec
from specdec.metrics import MIN_PROMPTS, Tally, block_efficiency, efficiency_contrast, holm
from specdec.results.options import proposes_nothing
from specdec.results.run_dir import read_tally

DISAGREES = 1  # exit status
FALSE_ALARM = 1e-3  # of all families together


def checked(
    specs: Mapping[str, ArmSpec],
    tallies: Mapping[str, Tally],
    folder: Path,
    noisy: Callable[[str, int], ArmSpec],
) -> int:
    """Decode, print both numbers of each family, and return the exit status.

    Args:
        specs: of the arms that were replayed, by name.
        tallies: what each came to.
        folder: what is decoded goes there.
        noisy: names an arm and how many are decoded, and returns it with other noise than that of
            the recorded texts.
    """
    chosen = families(specs)
    decoded: dict[str, Tally] = {}
    for name in chosen.values():
        decode_into(noisy(name, len(chosen)), folder / name)
        decoded[name] = read_tally(folder / name)
    found = {n: efficiency_contrast(decoded[n], tallies[n]).p_value for n in decoded}
    known = [name for name in found if found[name] is not None]
    adjusted = dict(zip(known, holm([found[name] or 0.0 for name in known]), strict=True))
    for family, name in chosen.items():
        print(line(family, name, decoded[name], tallies[name], adjusted.get(name)))
    wrong = [name for name in known if adjusted[name] < FALSE_ALARM]
    if wrong:
        print(f"error: the engine does not accept what replay expects: {', '.join(wrong)}")
    return DISAGREES if wrong else 0


def families(specs: Mapping[str, ArmSpec]) -> dict[str, str]:
    """Name one arm of each family, the last: proposers of one kind with one tree and one rule."""
    found: dict[str, str] = {}
    for name, spec in specs.items():
        if not proposes_nothing(spec.options):
            tree = plug_in_name(spec.tree.target) if spec.proposer.grows_trees else "chain"
            found[f"{plug_in_name(spec.proposer.target)}, {tree}, {rule_of(spec)}"] = name
    return found


def line(family: str, name: str, decoded: Tally, replayed: Tally, p_value: float | None) -> str:
    """Say what came of one family."""
    both = [block_efficiency(each).value or 0.0 for each in (replayed, decoded)]
    gap = efficiency_contrast(decoded, replayed).difference()
    between = "" if gap.low is None else f" [{gap.low:+.3f}, {gap.high:+.3f}]"
    untested = f", not tested (fewer than {MIN_PROMPTS} prompts)"
    p = untested if p_value is None else f", p {p_value:.2g} (Holm)"
    return (
        f"{family}: tau {both[0]:.3f} by replay, {both[1]:.3f} decoded, difference"
        f" {gap.value:+.3f}{between}{p}: {name}"
    )

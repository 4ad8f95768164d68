"""Where the steps of decoding begin on a given text, and what they add up to.

Given the text the step starts are a Markov chain on its positions: from s the next one is
s + A + 1 with P(A = a | text, s). So a dynamic programme over positions gives the probability r(s)
that a step begins at s, and with it the exact expectation, given the text, of whatever the steps
add up to: of real decoding, as far as its texts have the verifier's distribution.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specdec.core.step_starts import starts_along
from specdec.core.trace import PlainSteps
from specdec.metrics import Tally
from specdec.metrics.columns import CLOCKED, OWN, clock_columns
from specdec.recording.texts import Text
from specdec.replaying.costs import Seconds
from specdec.replaying.curves import Numbers
from specdec.replaying.submitted import Submitted

# Seconds (see `Seconds`) of steps that begin behind contexts [C]: of those whose candidates go down
# to each depth [C, D + 1, 3], or of those without any [C, 3].
Priced = Callable[[Numbers], Numbers]


@dataclass(frozen=True)
class Replayed:
    """Survival along B texts, and where steps begin."""

    texts: Sequence[Text]
    survival: Tensor  # [B, T, D + 1] float64: P(A >= k | text, s), 0 beyond `limits`
    limits: Tensor  # [B, T] int64: the deepest draft token that a step at s puts to the test
    drafted: Tensor  # [B, T] int64: how deep candidates go, which know nothing of the text's end
    submitted: Submitted
    starts: Tensor  # [B, T] float64: P(a step begins at s | text)

    @classmethod
    def of(
        cls,
        texts: Sequence[Text],
        survival: Tensor,
        drafted: Tensor | None = None,
        submitted: Submitted | None = None,
    ) -> "Replayed":
        """Find the starts.

        `drafted` [B, T] is the depth of the candidates where it varies; without `submitted` nothing
        is known of them but how many are accepted.
        """
        depth = survival.shape[2] - 1
        deepest = budget_limits(texts, depth, survival.device)
        deepest = deepest if drafted is None else deepest.minimum(drafted)
        limits = deepest.minimum(depth_limits(texts, depth, survival.device))
        depths = torch.arange(depth + 1, device=survival.device)
        survival = survival * (depths <= limits[..., None])
        submitted = submitted or Submitted.unknown(depth)
        starts = step_starts(texts, survival)
        return cls(texts, survival, limits, deepest, submitted, starts)

    @property
    def calls(self) -> Tensor:  # [B]
        """The expected number of verifier calls."""
        return self.starts.sum(dim=1)


def depth_limits(texts: Sequence[Text], depth: int, device: torch.device) -> Tensor:  # [B, T]
    """Return how deep candidates can be accepted: by the budget, and by where the text ends."""
    lengths = torch.tensor([[len(text.output_ids)] for text in texts], device=device)
    left = (lengths - torch.arange(int(lengths.max()), device=device)).clamp(min=0)
    return budget_limits(texts, depth, device).minimum(left)


def budget_limits(texts: Sequence[Text], depth: int, device: torch.device) -> Tensor:  # [B, T]
    """Return how deep the request's budget lets candidates go: the verifier adds its own token."""
    longest = max(len(text.output_ids) for text in texts)
    place = torch.arange(longest, device=device)
    budgets = torch.tensor([[text.budget] for text in texts], device=device)
    return (budgets - place - 1).clamp(min=0, max=depth)


def step_starts(texts: Sequence[Text], survival: Tensor) -> Tensor:  # [B, T, D + 1] -> [B, T]
    """Return r(s), the probability that a step begins at s: r(0) = 1."""
    lengths = torch.tensor([len(text.output_ids) for text in texts], device=survival.device)
    return starts_along(survival, lengths)


def tally(
    parts: Sequence[Replayed],
    num_drafted: Sequence[int] | None = None,
    seconds: Priced | None = None,
    plain: Priced | None = None,
) -> Tally:
    """Add up what steps are expected to count, prompt by prompt, as `Tally.of` adds up traces.

    `num_drafted[d]` is how many nodes a tree has down to depth d (from 0); None: unknown.
    `seconds` predicts steps by their context and the depth of their candidates, and `plain` those
    without candidates, which speed is compared with; None: no seconds are predicted. The context is
    that of each place where a step may begin, not an average one.

    All columns are exact, given the texts. What would depend on the draft's distributions beside
    the text is not among them (see `submitted`): E[A] given the candidates; how many candidates
    there are in trees of several levels that may stop or may lack children beside the text, or that
    are sampled on three levels and more where something ends texts; and, where such trees branch,
    how many steps are at risk. Predicted seconds let no candidate beside the text end it.
    """
    several = [_counts(part, num_drafted, seconds) for part in parts]
    known = set[str].intersection(*({*columns} for columns in several)) if several else set[str]()
    rows: dict[str, dict[str, float | str]] = {}
    for part, columns in zip(parts, several, strict=True):
        by_text = {name: column.tolist() for name, column in columns.items() if name in known}
        for place, text in enumerate(part.texts):
            counts = {
                **_of_text(text, plain),
                **{name: each[place] for name, each in by_text.items()},
            }
            row = rows.setdefault(text.prompt_id, {"category": text.category})
            for name, value in counts.items():
                before = row.get(name, 0.0)
                assert isinstance(before, float | int)
                row[name] = before + value
    return Tally.from_rows([{"prompt_id": name, **rows[name]} for name in sorted(rows)])


def _counts(
    part: Replayed,
    num_drafted: Sequence[int] | None,
    seconds: Priced | None,
) -> dict[str, Tensor]:  # each [B]
    """Return the columns that are known, by text."""
    starts, survival = part.starts, part.survival
    columns = {
        "num_steps": starts.sum(dim=1),
        "num_accepted": (starts[..., None] * survival[..., 1:]).sum(dim=(1, 2)),
    }
    for d, tested in enumerate(part.submitted.tested, start=1):
        columns[f"reached.{d}"] = (starts * survival[..., d]).sum(dim=1)
        if tested is not None:
            at_risk = survival[..., d - 1] * tested * (part.limits >= d)
            columns[f"at_risk.{d}"] = (starts * at_risk).sum(dim=1)
    if "at_risk.1" in columns:
        columns["num_drafts"] = columns["at_risk.1"]
    if num_drafted is not None:
        columns |= _drafted(part, num_drafted)
    if seconds is not None:
        columns |= _seconds(part, seconds)
        columns |= {f"{CLOCKED}{name}": columns[name] for name in OWN}
    return columns


def _drafted(part: Replayed, num_nodes: Sequence[int]) -> dict[str, Tensor]:  # each [B]
    """Count the candidates, and the steps that have no chain of them."""
    starts, depths, of_step = part.starts, part.drafted, part.submitted
    columns: dict[str, Tensor] = {}
    if of_step.left_out is not None:
        sizes = torch.tensor(num_nodes, dtype=torch.float64, device=starts.device)[depths]
        sizes = sizes - _at_depth(of_step.left_out, depths)
        columns["num_drafted"] = (starts * sizes).sum(dim=1)
    if of_step.branched is not None:
        columns["num_branched"] = (starts * _at_depth(of_step.branched, depths)).sum(dim=1)
    return columns


def _at_depth(values: Tensor, depths: Tensor) -> Tensor:  # [B, T, D + 1], [B, T] -> [B, T]
    return values.gather(2, depths[..., None])[..., 0]


def _of_text(text: Text, plain: Priced | None) -> dict[str, float]:
    """Return what no step decides."""
    return {
        "num_turns": 1,
        f"finished.{text.finish_reason}": 1,
        "num_emitted": len(text.output_ids),
        **_clock(text, plain),
    }


def _clock(text: Text, plain: Priced | None) -> dict[str, float]:
    """Add up what plain steps take for as many tokens, each behind those before it."""
    if plain is None:
        return {}
    number = len(text.output_ids)
    found = plain(len(text.prompt_ids) - 1 + np.arange(number, dtype=np.float64))
    verify, decode = float(found[:, 1].sum()), float(found.sum())
    return clock_columns(PlainSteps("", 0, number, verify, decode, number))


def _seconds(part: Replayed, priced: Priced) -> dict[str, Tensor]:  # each [B]
    """Add up what the steps of each text take."""
    starts = part.starts
    firsts = torch.tensor([[len(text.prompt_ids) - 1] for text in part.texts])
    contexts = firsts + torch.arange(starts.shape[1])  # [B, T]
    low, high = int(contexts.min()), int(contexts.max())
    table = torch.from_numpy(priced(np.arange(low, high + 1, dtype=np.float64))).to(starts.device)
    found = table[(contexts - low).to(starts.device), part.drafted]  # [B, T, 3]
    sums = (starts[..., None] * found).sum(dim=1)  # [B, 3]
    names = [f"{name}_seconds" for name in Seconds._fields]
    return {**dict(zip(names, sums.unbind(dim=1), strict=True)), "decode_seconds": sums.sum(dim=1)}

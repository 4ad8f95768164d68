"""Where the steps of decoding begin on a given text, and what they add up to.

Given the text the block starts are a Markov chain on its positions: from s the next one is
s + A + 1 with P(A = a | text, s). So a dynamic programme over positions gives the probability r(s)
that a step begins at s, and with it the exact expectation, given the text, of whatever the steps
add up to: of real decoding, as far as its texts have the verifier's law.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.core.renewal import starts_along
from specdec.core.trace import PlainSteps
from specdec.metrics import Tally
from specdec.metrics.tally import CLOCKED, KNOWN, OWN, clock_columns
from specdec.replay.costs import Seconds
from specdec.replay.texts import Text


@dataclass(frozen=True)
class Replayed:
    """Survival along B texts, and where steps begin."""

    texts: Sequence[Text]
    survival: Tensor  # [B, T, D + 1] float64: P(A >= k | text, s), 0 beyond `limits`
    limits: Tensor  # [B, T] int64: the deepest draft token that a step at s puts to the test
    starts: Tensor  # [B, T] float64: P(a step begins at s | text)

    @classmethod
    def of(
        cls, texts: Sequence[Text], survival: Tensor, drafted: Tensor | None = None
    ) -> "Replayed":
        """Find the starts. `drafted` [B, T] is the depth of the candidates where it varies."""
        depth = survival.shape[2] - 1
        limits = depth_limits(texts, depth, survival.device)
        limits = limits if drafted is None else limits.minimum(drafted)
        depths = torch.arange(depth + 1, device=survival.device)
        survival = survival * (depths <= limits[..., None])
        return cls(texts, survival, limits, block_starts(texts, survival))

    @property
    def calls(self) -> Tensor:  # [B]
        """The expected number of verifier calls."""
        return self.starts.sum(dim=1)


def depth_limits(texts: Sequence[Text], depth: int, device: torch.device) -> Tensor:  # [B, T]
    """Return how deep candidates go, by the request's budget and by where the text ends."""
    longest = max(len(text.output_ids) for text in texts)
    place = torch.arange(longest, device=device)
    lengths = torch.tensor([[len(text.output_ids)] for text in texts], device=device)
    budgets = torch.tensor([[text.budget] for text in texts], device=device)
    # The verifier adds a token of its own; nothing is drafted behind the end of a text.
    limits = (budgets - place - 1).minimum(lengths - place)
    return limits.clamp(min=0, max=depth)


def block_starts(texts: Sequence[Text], survival: Tensor) -> Tensor:  # [B, T, D + 1] -> [B, T]
    """Return r(s), the probability that a step begins at s: r(0) = 1."""
    lengths = torch.tensor([len(text.output_ids) for text in texts], device=survival.device)
    return starts_along(survival, lengths)


def tally(
    parts: Sequence[Replayed],
    num_drafted: Sequence[int] | None = None,
    seconds: Sequence[Seconds] | None = None,
    plain: Seconds | None = None,
) -> Tally:
    """Add up what steps are expected to count, prompt by prompt, as `Tally.of` adds up traces.

    `num_drafted[d]` is how many draft tokens a step submits that may go down to depth d (from 0);
    None: unknown without decoding, and so is everything that is made from it. `seconds[d]` is what
    such a step is predicted to take, and `plain` what one without candidates is, which speed is
    compared with; None: no seconds are told.

    All of it is exact, given the texts, but for one thing: end tokens among candidates beside the
    text, below which nothing is submitted. They make `num_drafted` a little too large and, in trees
    whose branches are of unlike depth, `at_risk` too.
    """
    rows: dict[str, dict[str, float | str]] = {}
    for part in parts:
        columns = _counts(part, num_drafted, seconds, plain)
        for text, counts in zip(part.texts, columns, strict=True):
            row = rows.setdefault(text.prompt_id, {"category": text.category})
            for name, value in counts.items():
                before = row.get(name, 0.0)
                assert isinstance(before, float | int)
                row[name] = before + value
    return Tally.from_rows([{"prompt_id": name, **rows[name]} for name in sorted(rows)])


def _counts(
    part: Replayed,
    num_drafted: Sequence[int] | None,
    seconds: Sequence[Seconds] | None,
    plain: Seconds | None,
) -> list[dict[str, float]]:
    starts, survival, limits = part.starts, part.survival, part.limits
    depths = range(1, survival.shape[2])
    tested = {d: (limits >= d) for d in depths}
    columns = {
        "num_steps": starts.sum(dim=1),
        "num_accepted": (starts[..., None] * survival[..., 1:]).sum(dim=(1, 2)),
    }
    columns["expected_accepted"] = columns["num_accepted"]
    columns[f"{KNOWN}expected_accepted"] = columns["num_steps"]
    for d in depths:
        columns[f"reached.{d}"] = (starts * survival[..., d]).sum(dim=1)
        columns[f"at_risk.{d}"] = (starts * survival[..., d - 1] * tested[d]).sum(dim=1)
    if num_drafted is not None:
        sizes = torch.tensor(num_drafted, dtype=torch.float64, device=starts.device)[limits]
        columns["num_drafted"] = (starts * sizes).sum(dim=1)
        columns["num_drafts"] = (starts * (sizes > 0)).sum(dim=1)
        branched = torch.tensor(
            [float(size != depth) for depth, size in enumerate(num_drafted)], device=starts.device
        )
        columns["num_branched"] = (starts * branched[limits]).sum(dim=1)
    if seconds is not None:
        columns |= _seconds(starts, limits, seconds)
        columns |= {f"{CLOCKED}{name}": columns[name] for name in OWN}
    told = {name: column.tolist() for name, column in columns.items()}
    return [
        {
            "num_turns": 1,
            f"finished.{text.finish_reason}": 1,
            "num_emitted": len(text.output_ids),
            **{name: column[row] for name, column in told.items()},
            **_clock(len(text.output_ids), plain),
        }
        for row, text in enumerate(part.texts)
    ]


def _clock(num_tokens: int, plain: Seconds | None) -> dict[str, float]:
    """Add up what plain steps take for as many tokens."""
    if plain is None:
        return {}
    return clock_columns(PlainSteps("", 0, 1, plain.verify, sum(plain), num_tokens))


def _seconds(
    starts: Tensor, limits: Tensor, seconds: Sequence[Seconds]
) -> dict[str, Tensor]:  # each [B]
    """Add up what the steps of each text take."""
    told = torch.tensor(seconds, dtype=torch.float64, device=starts.device)  # [D + 1, 3]
    sums = (starts[..., None] * told[limits]).sum(dim=1)  # [B, 3]
    names = [f"{name}_seconds" for name in Seconds._fields]
    return {**dict(zip(names, sums.unbind(dim=1), strict=True)), "decode_seconds": sums.sum(dim=1)}

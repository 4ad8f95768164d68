"""What the words of the page mean."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from specdec.metrics import DEFINITIONS, MIN_PROMPTS
from specdec.report.page.grids import Grid
from specdec.report.page.token_texts import KINDS
from specdec.report.plots import Plot
from specdec.report.table import INTERVALS, TIE

# What only this page speaks of; everything else is in DEFINITIONS.
MORE: Mapping[str, str] = MappingProxyType(
    {
        "arm": "Runs that differ in nothing but their seed, pooled: a prompt stays one unit.",
        "rule": "What decides which candidates survive. Lossless: the texts have exactly the "
        "verifier's distribution; otherwise total_variation (TV) and kl (KL, nats) say how far "
        "from it.",
        "interval": f"The small numbers below a number. {INTERVALS} A number of fewer than "
        f"{MIN_PROMPTS} prompts has none. n is the number of prompts; it is given with a number "
        "that rests on fewer than its table says.",
        "tie": TIE,
        "peak_memory_bytes": "The most accelerator memory that a run of the arm held; in GiB.",
        "num_seeds": "Runs that were pooled.",
        "accepted": "Of a token: a draft token that the rule let pass.",
        "recovered": "Of a token: the verifier's own, where it took none of the candidates.",
        "bonus": "Of a token: the verifier's own, behind draft tokens that were all accepted.",
        "depth": "Of a token: its place in its step, from 1; the verifier's own token is the last.",
        "rejected": "Of a token: the candidates at its place that did not become text.",
    }
)
OF_TOKENS = (*KINDS, "depth", "rejected")


def glossary(overviews: Sequence[Grid], plots: Iterable[Plot], texts: bool) -> list[str]:
    """Name what this page speaks of, in the order in which it does."""
    captions = " ".join(plot.caption for plot in plots)
    used = {column.key for grid in overviews for column in grid.columns}
    used |= {key for key, meaning in DEFINITIONS.items() if meaning in captions}
    used |= {"arm", "rule", "interval", "tie", "total_variation", "kl"}
    used |= {"num_accepted", "expected_accepted", "judged", *(OF_TOKENS if texts else ())}
    names = ["arm", *DEFINITIONS, *MORE]
    return [name for name in dict.fromkeys(names) if name in used]

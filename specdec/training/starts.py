"""Where the steps of decoding would begin along a batch of training texts."""

import torch
from torch import Tensor

from specdec.core.step_starts import starts_along


def start_probabilities(positions: Tensor, wanted: Tensor, survival: Tensor) -> Tensor:
    """Return r, the probability that a step begins at each of n positions: [n].

    Takes the positions [n] of the flattened text in order, wanted [n, K] bool (whether the token
    that depth i + 1 competes with is there and counts) and P(A >= k | text) for k = 1 ... K [n, K].

    Each run of neighbours whose first token is wanted is a text of its own, as an answer is: a step
    begins at its first position, and none drafts beyond its last. Samples cut out of a longer text
    begin anew, too, which a few tokens later makes no difference. Elsewhere r is 0.
    """
    starts = survival.new_zeros(len(positions))
    drafts = wanted[:, 0]
    places = positions[drafts]
    if len(places) == 0:
        return starts
    index = torch.arange(len(places), device=places.device)
    # Runs cannot reach into the next row: the last two positions of a row want nothing.
    first = torch.ones_like(places, dtype=torch.bool)
    first[1:] = places.diff() != 1
    run = first.cumsum(dim=0) - 1
    place = index - index[first][run]
    lengths = run.bincount()
    texts = survival.new_zeros(len(lengths), int(lengths.max()), survival.shape[1] + 1)
    texts[run, place] = torch.nn.functional.pad(survival[drafts], (1, 0), value=1.0)
    starts[drafts] = starts_along(texts, lengths)[run, place]
    return starts

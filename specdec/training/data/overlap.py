"""Held-out text that is trained on, too: what is measured there is memory."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from specdec.training.data.token_store import TokenStore

RUN = 32  # tokens: whoever shares so many in a row has copied them
AT_ONCE = 1 << 22  # tokens of the training data that are looked at together


def num_shared(store: TokenStore, samples: Sequence[tuple[Tensor, Tensor]]) -> int:
    """Return of how many samples, (token ids [T], counted [T]), a run of tokens is in a store.

    The run is of the last `RUN` tokens up to the last that counts, where a conversation that begins
    like others has its own words; a shorter sample is one run. One pass over the store.
    """
    runs = [_run(*sample) for sample in samples]
    found = [False] * len(runs)
    for piece in store.pieces(AT_ONCE, RUN - 1):
        at = _places(piece, {int(run[0]) for run in runs if len(run)})
        for index, run in enumerate(runs):
            if not found[index] and len(run):
                found[index] = _has(piece, at[int(run[0])], run)
    return sum(found)


def _run(token_ids: Tensor, counted: Tensor) -> np.ndarray:
    places = counted.nonzero()
    end = int(places[-1]) + 1 if len(places) else 0
    return token_ids[:end][-RUN:].numpy().astype(np.int32)


def _places(piece: np.ndarray, wanted: set[int]) -> dict[int, np.ndarray]:
    """Return where each wanted token stands."""
    is_wanted = np.zeros(max(piece.max(), *wanted) + 1, dtype=bool)
    is_wanted[list(wanted)] = True
    known = np.flatnonzero(is_wanted[piece])
    tokens = piece[known]
    return {token: known[tokens == token] for token in wanted}


def _has(piece: np.ndarray, starts: np.ndarray, run: np.ndarray) -> bool:
    starts = starts[starts <= len(piece) - len(run)]
    for offset, token in enumerate(run):
        starts = starts[piece[starts + offset] == token]
        if not len(starts):
            return False
    return True

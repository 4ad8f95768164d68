"""The suffixes of a text in their order, so that any sequence of tokens is found by bisection."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


def sorted_suffixes(token_ids: Tokens, depth: int) -> NDArray[np.int32]:  # [n] -> [n]
    """Sort the places of a text by the `depth` tokens that begin there; shorter ones come first.

    Prefix doubling (Manber and Myers 1990): places that are ranked by k tokens are ranked by 2 k
    with the ranks of the places k further on. Takes about 40 bytes a token while it runs.
    """
    ranks = np.unique(token_ids, return_inverse=True)[1].astype(np.int64)
    known, order = 1, np.argsort(ranks, kind="stable")
    while known < depth and known < len(ranks):
        behind = np.zeros_like(ranks)  # 0: the text has ended
        behind[:-known] = ranks[known:] + 1
        keys = ranks * (len(ranks) + 1) + behind
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        ranks[order] = np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])])
        known *= 2
        if ranks[order[-1]] == len(ranks) - 1:  # no two are alike any more
            break
    return order.astype(np.int32)


def bounds(
    token_ids: Tokens, suffixes: NDArray[np.int32], wanted: Sequence[int]
) -> tuple[int, int]:
    """Return where the suffixes begin and end, in their order, that begin with some tokens."""
    return (
        _bisected(token_ids, suffixes, list(wanted), False),
        _bisected(token_ids, suffixes, list(wanted), True),
    )


def _bisected(
    token_ids: Tokens, suffixes: NDArray[np.int32], wanted: list[int], behind: bool
) -> int:
    low, high = 0, len(suffixes)
    while low < high:
        middle = (low + high) // 2
        start = int(suffixes[middle])
        found: list[int] = token_ids[start : start + len(wanted)].tolist()
        if found < wanted or (behind and found == wanted):
            low = middle + 1
        else:
            high = middle
    return low

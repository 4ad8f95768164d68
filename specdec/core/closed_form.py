"""What a verification rule tells replay: how likely a text is to have come through its candidates.

Let a node have K children drawn from q, and let x be the token that the text has there. A lossless
rule emits x with probability p(x), and accepts the k-th child, x being what it bears, with some
probability m_k(x). Given the text, that child was accepted with probability m_k(x) / p(x), its
share; the shares add up to at most 1, and what they lack is the probability that x was drawn after
all children were rejected. Which other tokens the children bore is averaged out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextNodes:
    """Nodes with K children each, and the token x that a text has after each of them."""

    q: Tensor  # [n, V] float32 or float64: see `Proposal.draft_probs`
    token_ids: Tensor  # [n] int64: x
    log_p: Tensor  # [n] float64: log p(x)
    num_children: int  # K
    probs: Tensor | None = None  # [n, V]: p; None where it was not asked for, see `needs_p`
    # Each [n] float64: log q(x)/p(x) along a chain from depth 1 down to here; see `reads_path`.
    log_ratios: Sequence[Tensor] = ()
    generator: torch.Generator | None = None  # noise for what can only be averaged over draws
    # Each [n, m] float64: what the form noted of the nodes from depth 1 down to here; see `note`.
    notes: Sequence[Tensor] = ()
    num_paths: int = 1  # K children of the root where each is the beginning of one whole path

    @property
    def p(self) -> Tensor:  # [n, V]
        """The verifier's probabilities of all tokens."""
        assert self.probs is not None, "a closed form that reads p says so: needs_p=True"
        return self.probs

    def of_text(self, probs: Tensor) -> Tensor:  # [n, V] -> [n]
        """Return the entries of the text's tokens."""
        return probs.gather(1, self.token_ids[:, None]).squeeze(1)


Note = Callable[[TextNodes], Tensor]


class Ends(Protocol):
    """How likely a candidate is to end the text, given what the text goes on with.

    Nothing is submitted below such a candidate, so this says how many candidates there are. What
    the text has behind x tells nothing more of them: it has the verifier's distribution whatever
    was accepted. `is_end` [n or 1, V] bool marks the tokens that would end the text.
    """

    @property
    def needs_p(self) -> bool:
        """Whether `nodes.p` is read."""
        ...

    def ended(self, nodes: TextNodes, is_end: Tensor) -> Tensor:
        """Return P(the k-th child ends the text | x), [n, K]; fewer columns: the others unknown."""
        ...

    def stuck(self, nodes: TextNodes, is_end: Tensor, inner: Sequence[int]) -> Tensor | None:
        """Return P(a child was accepted, and all `inner` ones end the text | x), [n].

        Of texts that x does not end: the step then goes no deeper. None: no closed form is known.
        """
        ...


@dataclass(frozen=True)
class Passes:
    """Of a filtered chain: P(a drawn token passes | the text, A >= d - 1), [n]."""

    of: Callable[[TextNodes], Tensor]
    needs_p: bool = True  # whether `of` reads `nodes.p`


@dataclass(frozen=True)
class ClosedForm:
    """How a rule accepts candidates that were drawn in one way, given the text.

    `shares` alone gives acceptance and speed. Counters that the other fields decide are not
    reported where those are missing. Rules that decide alike share one form: it is computed once.
    """

    # P(the k-th child is the accepted one | its parent was reached, the text), [n, K].
    shares: Callable[[TextNodes], Tensor]
    needs_p: bool = True  # whether `shares` reads `nodes.p`, of tokens that the text does not have
    reads_path: bool = False  # chains: whether `shares` or `passes` reads `nodes.log_ratios`
    # Whole paths: m numbers of each node, [n, m] float64, for it and those below. They may read all
    # that the node has, but nothing of those above; with `reads_path` and `needs_p` alone.
    note: Note | None = None
    passes: Passes | None = None  # of filtered chains
    ends: Ends | None = None

"""Chained heads propose: each level's laws depend on the tokens above it."""

from specdec.heads.chained import ChainedHeads
from specdec.proposer.heads import HeadsProposer


class Chained(HeadsProposer):
    """K sequentially dependent heads (Ankner et al. 2024, Hydra).

    With prefix attention a cache of the verifier's states follows the committed text.
    """

    kind = ChainedHeads

"""Medusa heads propose a tree of their likeliest tokens from the verifier's last hidden state."""

from specdec.heads.medusa import MedusaHeads
from specdec.proposer.heads import HeadsProposer


class Medusa(HeadsProposer):
    """K heads that know nothing of each other's tokens (Cai et al. 2024).

    All nodes of a level share one law, that of the level's head.
    """

    kind = MedusaHeads

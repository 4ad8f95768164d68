"""Train Medusa heads on a frozen verifier (Medusa-1, Cai et al. 2024, section 2.2)."""

from specdec.proposer.medusa import Medusa
from specdec.training.heads import HeadTraining


class MedusaTraining(HeadTraining):
    """K heads that know nothing of each other; see `HeadTraining` and `MedusaHeads`."""

    proposer = Medusa

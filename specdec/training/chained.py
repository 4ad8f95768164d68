"""Train chained heads on a frozen verifier (Ankner et al. 2024, Hydra, sections 3 and 4)."""

from specdec.proposer.chained import Chained
from specdec.training.heads import HeadTraining


class ChainedTraining(HeadTraining):
    """K heads that read each other; in training the tokens they read are the text's.

    See `HeadTraining` and `ChainedHeads`.
    """

    proposer = Chained

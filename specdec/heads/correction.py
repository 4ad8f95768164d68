"""A correction of logits by the token before: what rows of parallel heads lack of each other."""

from torch import Tensor, nn

from specdec.core.errors import require, require_int

CORRECTIONS = ("none", "markov")
SPREAD = 0.02  # of fresh embeddings: what no training text has before a token adds next to nothing


class MarkovCorrection(nn.Module):
    """Adds W2 W1[x] to the logits behind a token x (DSpark, arXiv 2607.05147, "vanilla").

    W1 and W2 are [V, r]. W2 is zero at first, so that a fresh one changes nothing.
    """

    def __init__(self, vocab_size: int, rank: int):
        super().__init__()
        self.before = nn.Embedding(vocab_size, rank)  # W1
        self.after = nn.Linear(rank, vocab_size, bias=False)  # W2
        nn.init.normal_(self.before.weight, std=SPREAD)
        nn.init.zeros_(self.after.weight)

    def forward(self, previous_ids: Tensor) -> Tensor:  # [...] -> [..., V]
        """Return what is added to the logits behind these tokens."""
        return self.after(self.before(previous_ids))


def correction_of(name: object, vocab_size: int, rank: int) -> MarkovCorrection | None:
    """Make what an option names.

    Raises:
        UserError: it names none, or `rank` is out of its range.
    """
    require(name in CORRECTIONS, "correction", name, "one of " + ", ".join(CORRECTIONS))
    require_int("rank", rank, 1)
    return MarkovCorrection(vocab_size, rank) if name == "markov" else None

"""Proofs for authors of plug-ins, in a line each; what fails raises `UserError`.

```python
from specdec.testing import check_heads, check_loss, check_proposer, check_tree, prove_lossless

prove_lossless(MyRule())
check_proposer(lambda: MyProposer(gamma=4))
check_tree(MyTree(width=3))
check_loss(MyLoss())
check_heads(MyTraining)
```
"""

from specdec.proof.enumeration import outcomes
from specdec.proof.lossless import prove_lossless
from specdec.testing.heads import check_heads
from specdec.testing.losses import check_loss
from specdec.testing.proposers import check_proposer
from specdec.testing.table_lm import TableLM, random_table
from specdec.testing.trees import check_tree

__all__ = [
    "TableLM",
    "check_heads",
    "check_loss",
    "check_proposer",
    "check_tree",
    "outcomes",
    "prove_lossless",
    "random_table",
]

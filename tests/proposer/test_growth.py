"""Trees grown by a real model: each level is read at its positions, behind its own ancestors."""

import pytest
from asking import asked, context
from families import VOCAB_SIZE, plain_logits, random_ids, tiny_model

from specdec.lm.hf import HFCausalLM
from specdec.proposer.draft_model import DraftModel
from specdec.tree.sparse import Sparse

PATHS = [[0, 0, 1], [2, 0], [0, 3], [1]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_every_node_has_its_rank_after_its_own_path(family: str) -> None:
    """Two rows of unlike lengths, each node against a plain forward over its path."""
    model = tiny_model(family)
    proposer = DraftModel(HFCausalLM(model), Sparse(PATHS))
    rows = [context(random_ids(num, seed=num), row=row) for row, num in enumerate((5, 9))]
    for one, proposal in zip(rows, asked(proposer, *rows, vocab_size=VOCAB_SIZE), strict=True):
        texts, ranks = [list(one.token_ids)], list[int]()
        tree = proposal.tree
        for token, parent in zip(tree.token_ids[1:], tree.parents[1:], strict=True):
            order = plain_logits(model, texts[parent])[-1].argsort(descending=True).tolist()
            ranks.append(order.index(token))
            texts.append([*texts[parent], token])
        assert ranks == [0, 1, 2, 0, 3, 0, 1], f"{family}, row {one.row}"

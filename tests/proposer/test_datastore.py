"""Texts on the disk: found by bisection, and held against a search that looks at everything."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

import specdec as sd
from specdec.core.errors import UserError
from specdec.lm.fingerprint import require_tokens_of, tokenizer_digest
from specdec.proposer.datastore import CARD, SUFFIXES, TOKENS, Datastore, write_datastore
from specdec.proposer.retrieval import Retrieval
from specdec.proposer.suffix_array import sorted_suffixes
from specdec.testing import check_proposer
from tests.support.asking import context, draft_ids, proposals_of


def written(folder: Path, texts: Sequence[Sequence[int]], shard: int = 1000) -> Datastore:
    write_datastore(texts, folder, "tokenizer", shard)
    return Datastore.open(str(folder), "path")


@pytest.mark.parametrize("seed", range(20))
def test_suffixes_are_sorted(seed: int) -> None:
    rng = random.Random(seed)
    text = rng.choices(range(3), k=rng.randint(1, 60))
    order = sorted_suffixes(np.array(text, dtype=np.int32), 64)
    assert order.tolist() == sorted(range(len(text)), key=lambda place: text[place:])


def test_suffixes_are_sorted_as_far_as_it_is_asked_for() -> None:
    text = random.Random(0).choices(range(2), k=200)
    order = sorted_suffixes(np.array(text, dtype=np.int32), 4).tolist()
    beginnings = [text[place : place + 4] for place in order]
    assert beginnings == sorted(beginnings)
    assert sorted(order) == list(range(200))


@pytest.mark.parametrize("shard", [1000, 7])
@pytest.mark.parametrize("seed", range(8))
def test_the_longest_match_equals_a_search(seed: int, shard: int, tmp_path: Path) -> None:
    """Whatever the shards; matches that reach from one into the next are nobody's."""
    rng = random.Random(seed)
    texts = [rng.choices(range(3), k=rng.randint(1, 12)) for _ in range(6)]
    store = written(tmp_path, texts, shard)
    stream = [token for text in texts for token in [*text, -1]]
    pieces = [stream[start : start + shard] for start in range(0, len(stream), shard)]
    for _ in range(10):
        text = rng.choices(range(3), k=rng.randint(1, 9))
        match = store.find(text, 1, 3)
        length, following = by_search(pieces, text)
        assert (0 if match is None else match.length) == length
        if match is not None:
            assert {token: often for token, often, _ in match.place.goes_on()} == following


def by_search(pieces: Sequence[Sequence[int]], text: Sequence[int]) -> tuple[int, Counter[int]]:
    for length in range(len(text), 0, -1):
        wanted = list(text[len(text) - length :])
        behind = [
            piece[place + length] if place + length < len(piece) else -1
            for piece in pieces
            for place in range(len(piece) - length + 1)
            if list(piece[place : place + length]) == wanted
        ]
        if behind:
            return length, Counter(token for token in behind if token >= 0)
    return 0, Counter()


def test_frequent_continuations_make_a_tree(tmp_path: Path) -> None:
    """Three texts go on with 7, of which two with 8; one goes on with 5."""
    store = written(tmp_path, [[1, 2, 7, 8], [1, 2, 7, 8], [1, 2, 7, 9], [1, 2, 5, 5]])
    (proposal,) = proposals_of(Retrieval(store, 2, num_nodes=4), context([0, 1, 2]))
    assert proposal.tree.token_ids == (2, 7, 8, 5, 9)
    assert proposal.tree.parents == (-1, 0, 1, 0, 1)
    assert proposal.matched == 2
    (chain,) = proposals_of(Retrieval(store, 3), context([0, 1, 2]))
    assert draft_ids(chain) == [7, 8]
    (nothing,) = proposals_of(Retrieval(store, 2, min_matched=3), context([0, 1, 2]))
    assert draft_ids(nothing) == []


def test_the_text_itself_is_not_looked_at(tmp_path: Path) -> None:
    store = written(tmp_path, [[1, 2, 7]])
    (proposal,) = proposals_of(Retrieval(store, 2), context([3, 4, 5, 3, 4]))
    assert draft_ids(proposal) == []


def test_the_files_are_mapped_and_not_read(tmp_path: Path) -> None:
    store = written(tmp_path, [range(50)], shard=10)
    assert len(store.shards) == 6
    assert all(isinstance(shard.token_ids, np.memmap) for shard in store.shards)
    assert all(isinstance(shard.suffixes, np.memmap) for shard in store.shards)


def test_it_keeps_its_protocol(tmp_path: Path) -> None:
    rng = random.Random(0)
    store = written(tmp_path, [rng.choices(range(5), k=200)])
    check_proposer(lambda: Retrieval(store, 3, min_matched=1, num_nodes=5))


def test_a_datastore_that_is_damaged_is_refused(tmp_path: Path) -> None:
    written(tmp_path, [[1, 2, 3]])
    (tmp_path / TOKENS).write_bytes(b"\0" * (tmp_path / TOKENS).stat().st_size)
    with pytest.raises(UserError, match=rf"damaged \({TOKENS} is not as it was written\)"):
        Datastore.open(str(tmp_path), "path")
    (tmp_path / SUFFIXES).unlink()
    with pytest.raises(UserError, match=f"{SUFFIXES} is missing"):
        Datastore.open(str(tmp_path), "path")
    (tmp_path / CARD).write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        Datastore.open(str(tmp_path), "path")


def test_what_holds_no_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the texts hold no tokens"):
        write_datastore([[], []], tmp_path, "tokenizer")
    with pytest.raises(UserError, match=r"no datastore\.json in that folder"):
        Datastore.open(str(tmp_path), "path")
    with pytest.raises(UserError, match="path=None: expected a datastore"):
        Retrieval.load(None, 2)


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    tokenizer = sd.load("zoo:verifier").tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    write_datastore([[1, 2]], tmp_path, tokenizer_digest(tokenizer))
    require_tokens_of(tokenizer, Retrieval.load(str(tmp_path), 2))
    write_datastore([[1, 2]], tmp_path, "another")
    proposer = Retrieval.load(str(tmp_path), 2)
    with pytest.raises(UserError, match="tokens of another tokenizer"):
        require_tokens_of(tokenizer, proposer)
    with pytest.raises(UserError, match="tokens of another tokenizer"):
        sd.SpeculativeDecoder(sd.load("zoo:verifier"), proposer, sd.Rejection())

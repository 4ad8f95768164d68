"""Drafts of another tokenizer: q is what was drawn from, and cells are of the text."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from specdec.core.errors import UserError
from specdec.core.outcome import Outcome
from specdec.core.protocols import Proposer, TreePolicy
from specdec.core.sampling import Sampling, draw
from specdec.core.values import Context, Draw, Verdict
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.hf import HFCausalLM
from specdec.lm.recurrent import causal_lm
from specdec.lm.token_bytes import spelling_of
from specdec.lm.translation import Translation
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.none import NoProposer
from specdec.tree.chain import Chain
from specdec.tree.dynamic import Dynamic
from specdec.tree.filtered import Filtered
from specdec.tree.sampled import Sampled
from specdec.tree.sparse import Sparse
from specdec.verification.match import Match
from specdec.verification.rejection import Rejection
from specdec.verification.top_plus_one import TopPlusOne
from tests.support.asking import context, draft_ids, proposals_of
from tests.support.families import RECURRENT, tiny_model
from tests.support.small_tokenizers import byte_level, metaspace, wordpiece
from tests.support.toy import full_context
from tests.support.translating import TranslatingTable, toy_draft, toy_translation

V = 3  # of both toys: a, b, ab and b, a, ba
Q = full_context(seed=5, vocab_size=V)
SAMPLINGS = [Sampling(), Sampling(0.6), Sampling(1.4, top_k=1), Sampling(top_p=0.6), Sampling(0)]


def common_logits(text: Sequence[int]) -> torch.Tensor:
    """The draft's, by the verifier's tokens: a is its 1, b its 0, and ab none of its own."""
    logits = Q(tuple(text)).log()
    return torch.stack([logits[1], logits[0], torch.tensor(float("-inf"), dtype=logits.dtype)])


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_q_is_renormalised_over_the_common_tokens_and_drawn_from(sampling: Sampling) -> None:
    """The text ab, a, b reads a, ba, b to the draft: its tokens are those of the string abab."""
    for key in range(30):
        one = context([2, 0, 1], sampling=sampling, key=key)
        (proposal,) = proposals_of(DraftModel(toy_draft("intersection", Q), Chain(3)), one)
        drafted, q = draft_ids(proposal), proposal.draft_probs
        assert q is not None
        assert q.shape[-1] == 100
        assert proposal.draw is Draw.SINGLE
        read = [{0: 1, 1: 0}[token] for token in drafted]
        logits = torch.stack([common_logits([1, 2, 0, *read[:n]]) for n in range(len(read))])
        torch.testing.assert_close(q[:, :V], sampling.warp(logits))
        assert not q[:, V:].any()
        stream = context([2, 0, 1], key=key).draft_stream
        uniforms = torch.tensor([[stream.uniform()] for _ in drafted], dtype=torch.float64)
        assert draw(q, uniforms)[:, 0].tolist() == drafted


def test_text_becomes_the_verifier_s_tokens_and_point_masses() -> None:
    """Its likeliest text, whatever the verifier's temperature, and at most as many tokens."""
    found: set[tuple[int, ...]] = set()
    for key in range(30):
        one = context([2, 0, 1], sampling=Sampling(), key=key)
        (proposal,) = proposals_of(DraftModel(toy_draft("strings", Q), Chain(3)), one)
        assert proposal.draft_probs is None
        assert proposal.draw is Draw.DETERMINISTIC
        found.add(tuple(draft_ids(proposal)))
    text, said = [1, 2, 0], ""
    for _ in range(3):
        text.append(int(Q(tuple(text)).argmax()))
        said += ["b", "a", "ba"][text[-1]]
    (tokens,) = found
    assert "".join(["a", "b", "ab"][token] for token in tokens) == said[: len("".join(
        ["a", "b", "ab"][token] for token in tokens))]  # fmt: skip
    assert 0 < len(tokens) <= 3
    hot = DraftModel(toy_draft("strings", Q), Chain(3), temperature=1.0)
    several = {tuple(draft_ids(proposals_of(hot, context([2], key=n))[0])) for n in range(30)}
    assert len(several) > 3, "at a temperature of its own it is drawn"


@pytest.mark.parametrize("kind", ["intersection", "strings"])
def test_cells_are_of_the_text_and_what_agrees_is_not_read_again(kind: str) -> None:
    """Whatever was accepted: also where the new text makes other tokens of the end of the old."""
    model = toy_draft(kind, Q)
    proposer = DraftModel(model, Chain(3))
    rows = [context([0, 1, 1], row=0), context([2], row=1)]
    proposer.open(2, 200, V)
    proposer.reset(rows)
    for step in range(40):
        present = rows if step % 5 else rows[step % 2 :][:1]
        before = model.num_read
        proposals = proposer.propose(present)
        verdicts = list[Verdict]()
        for one, proposal in zip(present, proposals, strict=True):
            accepted = min(step % 4, proposal.tree.num_draft_tokens)
            nodes = tuple(range(1, accepted + 1))
            assert isinstance(one.token_ids, list)
            one.token_ids.extend(proposal.tree.token_ids[node] for node in nodes)
            one.token_ids.append((step // 2) % V)
            verdicts.append(Verdict(nodes, one.token_ids[-1], Outcome.RECOVERED))
        proposer.update(present, verdicts)
        longest = max(len(one.token_ids) for one in rows)
        assert model.num_read - before <= 2 * (2 + 3 + 24) or longest < 24
        for one in present:
            assert_cells_are_of_the_text(model, one)
    assert max(len(one.token_ids) for one in rows) > 60


def assert_cells_are_of_the_text(model: TranslatingTable, one: Context) -> None:
    cells = model.texts(one.row)
    said = model.translation.draft.said(cells)
    text = model.translation.verifier.said(one.token_ids)
    assert text.startswith(said)
    assert len(text) - len(said) <= 12, "too little of it is kept"


# xab is x, ab to the draft, and xabc is xa, bc.
SINGLE = ["x", "a", "b", "c"]
MERGING = [*SINGLE, "bc", "ab", "xa"]


def merging_draft(kind: str) -> DraftModel:
    distribution, translation = (
        full_context(seed=5, vocab_size=len(MERGING)),
        toy_translation(kind, SINGLE, MERGING),
    )
    model = TranslatingTable(distribution, len(MERGING), translation)
    return DraftModel(model, Chain(2))


@pytest.mark.parametrize("kind", ["intersection", "strings"])
@pytest.mark.parametrize(
    ("committed", "text", "goes_back"),
    [
        ([3, 0, 1, 2], [3, 0, 1, 2, 3, 1], False),  # others drafted the rest: a part of a hybrid
        ([3, 0, 1, 2, 3, 1], [3, 0, 1, 2], True),  # what it drafted behind was refused: a cascade
        ([3, 0, 1, 2, 3, 1], [3, 0, 1, 0], True),
    ],
)
def test_a_text_may_be_another_one_at_the_next_step(
    kind: str, committed: list[int], text: list[int], goes_back: bool
) -> None:
    """It reads that text, and nothing of what its cells held."""
    proposer = merging_draft(kind)
    proposals_of(proposer, context([3]), vocab_size=len(SINGLE))
    proposer.update([context(committed)], [Verdict((), committed[-1], Outcome.RECOVERED)])
    proposer.propose([context(committed)])
    if goes_back:
        proposer.rewind([context(text)])
    else:
        proposer.update([context(committed)], [Verdict((), committed[-1], Outcome.RECOVERED)])
    (found,) = proposer.propose([context(text)])
    (alone,) = proposals_of(merging_draft(kind), context(text), vocab_size=len(SINGLE))
    assert found.tree == alone.tree
    if found.draft_probs is not None and alone.draft_probs is not None:
        assert torch.equal(found.draft_probs, alone.draft_probs)


TREES: dict[str, TreePolicy] = {
    "chain": Chain(4),
    "chain that may stop": Chain(4, 0.02),
    "filtered": Filtered(4, min_prob=0.01),
    "iid": Sampled([2, 2, 1], "iid"),
    "without replacement": Sampled([3, 2, 1], "without_replacement"),
    "top plus one": Sampled([3, 2, 1], "top_plus_one"),
    "dynamic": Dynamic(12, 3, 6),
    "sparse": Sparse([[0, 0, 0], [1, 0], [0, 2], [2]]),
}
TOKENIZERS = {
    "other words": lambda: byte_level(300, "<eos>", True),
    "metaspace": metaspace,
    "wordpiece": wordpiece,
}
PROMPTS = ["def naive(self", "The quick brown Fox jumps over 42", "a \U0001f389 caf\u00e9"]


def lm_of(tokenizer: Any, family: str, seed: int) -> HFCausalLM:
    kind = causal_lm if family in RECURRENT else HFCausalLM
    return kind(tiny_model(family, seed=seed, vocab_size=len(tokenizer)), tokenizer)


def drafting(kind: str, tokenizer: str, tree: TreePolicy, family: str = "llama") -> DraftModel:
    draft = lm_of(TOKENIZERS[tokenizer](), family, seed=1)
    write = spelling_of(TOKENIZERS[tokenizer]())
    draft.translation = Translation(kind, spelling_of(byte_level()), write)
    return DraftModel(draft, tree)


def texts(
    verifier: HFCausalLM, proposer: Proposer, sampling: Sampling, batch: int
) -> list[Sequence[int]]:
    rule = TopPlusOne() if proposer.draw is Draw.TOP_PLUS_ONE else Rejection()
    rule = Match() if sampling.temperature == 0 else rule
    requests = [
        Request(str(number), verifier.encode(prompt), max_new_tokens=5 + 3 * number)
        for number, prompt in enumerate(PROMPTS)
    ]
    decoder = SpeculativeDecoder(verifier, proposer, rule, sampling, Stopping(20), batch)
    return [trace.output_ids for trace in decoder.decode(requests)]


@cache
def plain_texts() -> tuple[HFCausalLM, list[Sequence[int]]]:
    verifier = lm_of(byte_level(), "llama", seed=0)
    return verifier, texts(verifier, NoProposer(), Sampling(0), 1)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("tree", TREES)
def test_the_text_at_temperature_zero_is_the_verifier_s(tree: str, tokenizer: str) -> None:
    """Common tokens in every tree, and batches whose rows leave at unlike times."""
    verifier, plain = plain_texts()
    proposer = drafting("intersection", tokenizer, TREES[tree])
    assert texts(verifier, proposer, Sampling(0), 2) == plain
    assert len(texts(verifier, proposer, Sampling(0.8, top_k=5), 2)) == len(PROMPTS)


@pytest.mark.parametrize("tokenizer", ["other words", "metaspace"])
@pytest.mark.parametrize("family", ["gpt2", "mamba2", "gemma3_text"])
def test_text_of_a_draft_leaves_the_verifier_s_text_alone(family: str, tokenizer: str) -> None:
    verifier, plain = plain_texts()
    for kind, batch in (("strings", 1), ("strings", 3), ("intersection", 3)):
        proposer = drafting(kind, tokenizer, Chain(4), family)
        assert texts(verifier, proposer, Sampling(0), batch) == plain


def relabelled(kind: str) -> tuple[HFCausalLM, DraftModel]:
    verifier = lm_of(byte_level(), "llama", seed=0)
    copy = tiny_model("llama", seed=0, vocab_size=verifier.vocab_size)
    order = torch.randperm(verifier.vocab_size, generator=torch.Generator().manual_seed(3))
    tables: list[Any] = [copy.get_input_embeddings(), copy.get_output_embeddings()]
    for table in tables:
        table.weight.data = table.weight.data[order]
    places = {int(theirs): ours for ours, theirs in enumerate(order)}
    said = json.loads(byte_level().backend_tokenizer.to_str())
    vocab = said["model"]["vocab"]
    said["model"]["vocab"] = {token: places[number] for token, number in vocab.items()}
    for added in said["added_tokens"]:
        added["id"] = places[added["id"]]
    made = Tokenizer.from_str(json.dumps(said))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")
    draft = HFCausalLM(copy, tokenizer)
    draft.translation = Translation(kind, spelling_of(byte_level()), spelling_of(tokenizer))
    assert len(draft.translation.pairs) == verifier.vocab_size
    return verifier, DraftModel(draft, Chain(4))


@pytest.mark.parametrize("batch", [1, 3])
def test_the_verifier_itself_in_other_numbers_is_always_right(batch: int) -> None:
    """Of a prompt, that is: what random weights write is no text that a tokenizer would give."""
    verifier, proposer = relabelled("intersection")
    requests = [Request(str(n), verifier.encode(text)) for n, text in enumerate(PROMPTS)]
    decoder = SpeculativeDecoder(verifier, proposer, Match(), Sampling(0), Stopping(5), batch)
    traces = decoder.decode(requests)
    first = [trace.steps[0] for trace in traces]
    assert all(step.accepted == 4 for step in first), "prompts are read as they are"


def test_text_is_drafted_in_chains_alone() -> None:
    with pytest.raises(UserError, match=r"^tree: Sparse: a draft of vocabulary=strings"):
        DraftModel(toy_draft("strings", Q), Sparse([[0], [1]]))


def test_no_rank_beyond_the_common_tokens() -> None:
    with pytest.raises(UserError, match="rank 2, but there are 2 tokens"):
        DraftModel(toy_draft("intersection", Q), Sparse([[2]]))


def test_text_that_does_not_fit_the_draft_s_context_gets_no_drafts() -> None:
    """Counted in the draft's tokens, not in the verifier's."""
    model = toy_draft("intersection", Q)
    model.max_length = 8
    for text, drafted in (([2, 0, 1], 3), ([0, 0, 0, 0, 0, 0], 0)):
        (proposal,) = proposals_of(DraftModel(model, Chain(3)), context(text))
        assert proposal.tree.num_draft_tokens == drafted

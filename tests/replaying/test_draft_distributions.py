"""Replay reads along a text the distributions that decoding would draft from there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.core.randomness import RandomStream
from specdec.core.sampling import Sampling
from specdec.core.values import Context
from specdec.heads.base import DraftHeads
from specdec.heads.block import BlockHead
from specdec.heads.eagle import EagleHead
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load
from specdec.proposer.block import BlockDraft
from specdec.proposer.chained import Chained, ChainedHeads
from specdec.proposer.eagle import Eagle
from specdec.proposer.feature_proposer import FeatureProposer
from specdec.proposer.levels import Frontier
from specdec.proposer.medusa import Medusa, MedusaHeads
from specdec.recording.texts import Text
from specdec.replaying.draft_distributions import HeadDistributions, ModelDistributions
from specdec.tree.chain import Chain
from tests.support.running import Tiny

NUM_HEADS = 3
TEXTS = [
    Text("a", "", 0, (5, 9, 14, 2), (7, 30, 8, 120, 66, 3), (), "length", 6),
    Text("b", "", 0, (11,), (40, 41, 42), (), "eos", 6),
    Text("c", "", 0, (1, 2), (9,), (), "length", 1),
]


def medusa(
    verifier: HFCausalLM, more: int = 0, correction: str = "none"
) -> tuple[DraftHeads, FeatureProposer]:
    heads = MedusaHeads(32, verifier.vocab_size + more, NUM_HEADS, 1, True, correction, 4)
    return heads, Medusa(heads, verifier, Chain(NUM_HEADS))


def chained(verifier: HFCausalLM, link: str, prefix: bool) -> tuple[DraftHeads, FeatureProposer]:
    heads = ChainedHeads(32, verifier.vocab_size, NUM_HEADS, 1, True, link, prefix, 4)
    return heads, Chained(heads, verifier, Chain(NUM_HEADS))


def eagle(verifier: HFCausalLM, fusion: str, **options: Any) -> tuple[DraftHeads, FeatureProposer]:
    heads = EagleHead(32, verifier.vocab_size, NUM_HEADS, [0, "final"], fusion, **options)
    return heads, Eagle(heads, verifier, Chain(NUM_HEADS))


def block(verifier: HFCausalLM, **options: Any) -> tuple[DraftHeads, FeatureProposer]:
    heads = BlockHead(32, verifier.vocab_size, NUM_HEADS, 2, [0, "final"], rank=4, **options)
    return heads, BlockDraft(heads, verifier, Chain(NUM_HEADS))


KINDS = {
    "medusa": medusa,
    "medusa, corrected": lambda verifier: medusa(verifier, 0, "markov"),
    "medusa of fewer tokens": lambda verifier: medusa(verifier, -7),
    "medusa of more tokens": lambda verifier: medusa(verifier, 5),
    "chained by tokens": lambda verifier: chained(verifier, "token", False),
    "chained by both, with prefix attention": lambda verifier: chained(verifier, "both", True),
    "eagle": lambda verifier: eagle(verifier, "concat", num_attention_heads=2),
    "block": block,
    "block that sees itself, in place": lambda verifier: block(
        verifier, mask="bidirectional", labels="in_place", correction="none"
    ),
    "mtp": lambda verifier: eagle(verifier, "project", norm_output=True),
}


def shaken(heads: DraftHeads) -> None:
    """Make every head say something of its own."""
    with torch.no_grad():
        for weight in heads.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("kind", KINDS)
def test_heads_say_what_they_say_in_decoding(tiny: Tiny, kind: str) -> None:
    verifier = load(str(tiny.verifier))
    heads, proposer = KINDS[kind](verifier)
    shaken(heads)
    heads.eval()
    with torch.inference_mode():
        distributions = list(HeadDistributions(heads, verifier).along(TEXTS, verifier.vocab_size))
        for row, text in enumerate(TEXTS):
            first = HeadDistributions(heads, verifier).first_start(text)
            for start in range(first, len(text.output_ids)):
                said = drafted(proposer, verifier, text, start)
                for depth, logits in enumerate(said):
                    assert torch.allclose(distributions[depth][row, start], logits, atol=1e-4), (
                        row,
                        start,
                    )


def drafted(
    proposer: FeatureProposer, verifier: HFCausalLM, text: Text, start: int
) -> list[Tensor]:  # of [V]
    """Let the proposer draft along the text from one place on, in a step of its own."""
    tokens = [*text.prompt_ids, *text.output_ids]
    live = tokens[: len(text.prompt_ids) + start]
    verifier.open(1, len(tokens))
    (features,) = verifier.prefill([0], [live[:-1]], layers=proposer.layers)
    stream = RandomStream("unused")
    context = Context(0, "a", live, len(text.prompt_ids), Sampling(), 99, stream, stream, features)
    proposer.open(1, len(tokens), verifier.vocab_size)
    proposer.reset([context])
    proposer._take_in([context])
    source = proposer._source([context])
    said = [next(source)[0, 0]]
    for token in text.output_ids[start : start + NUM_HEADS - 1]:
        place = Frontier(torch.tensor([[token]]), torch.tensor([[0]]), is_whole_level=True)
        said.append(source.send(place)[0, 0])
    return said


def test_prompts_of_one_token_begin_without_candidates(tiny: Tiny) -> None:
    verifier = load(str(tiny.verifier))
    distributions = HeadDistributions(medusa(verifier)[0], verifier)
    assert [distributions.first_start(text) for text in TEXTS] == [0, 1, 0]
    assert ModelDistributions(verifier).first_start(TEXTS[1]) == 0


def test_heads_say_whether_they_depend_on_the_candidates(tiny: Tiny) -> None:
    verifier = load(str(tiny.verifier))
    found = {kind: make(verifier)[0] for kind, make in KINDS.items()}
    reading = {k for k, heads in found.items() if HeadDistributions(heads, verifier).reads_path}
    chosen = {kind for kind in KINDS if "chained" in kind or "corrected" in kind}
    assert reading == chosen | {"eagle", "mtp", "block"}


def test_a_draft_model_is_read_once_for_all_depths(tiny: Tiny) -> None:
    draft = load(str(tiny.draft))
    with torch.inference_mode():
        (logits,) = ModelDistributions(draft).along(TEXTS, draft.vocab_size)
        assert logits.shape == (3, 6, draft.vocab_size)
        for row, text in enumerate(TEXTS):
            tokens = torch.tensor([[*text.prompt_ids, *text.output_ids]])
            plain = draft.model(tokens).logits[0, len(text.prompt_ids) - 1 : -1]
            ours = logits[row, : len(text.output_ids)]
            assert torch.allclose(ours, plain, atol=1e-4)


def test_texts_beyond_the_drafts_context_are_refused(tiny: Tiny) -> None:
    draft = load(str(tiny.draft))
    long = Text("a", "", 0, (1,) * 200, (2,) * 100, (), "length", 100)
    with pytest.raises(UserError, match="texts of 300 tokens, of which the draft model reads 256"):
        list(ModelDistributions(draft).along([long], draft.vocab_size))

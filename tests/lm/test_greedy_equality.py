"""At temperature 0 in fp32, every proposer emits `generate(do_sample=False)`, token for token.

The stock model's own `generate`, with its own cache and masks, prompt by prompt, is the reference;
it runs once for each family.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from specdec.core.protocols import Proposer
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.core.tree import CandidateTree
from specdec.core.values import Context, Draw, Layer, Proposal, Verdict
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.hf import HFCausalLM
from specdec.proposer.cascade import Cascade
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.ngram import NGram
from specdec.proposer.none import NoProposer
from specdec.proposer.recorded import Recorded
from specdec.tree.chain import Chain
from specdec.verification.rejection import Rejection
from tests.support.families import EACH_FAMILY, VOCAB_SIZE, noisy_copy, random_ids, tiny_model

MAX_NEW_TOKENS = 16
GAMMA = 3
PADDED = VOCAB_SIZE + 3
Tokens = tuple[int, ...]
# Unlike lengths, one of them a single token; most are longer than the window of 6.
PROMPTS = [random_ids(num, seed=num) for num in (1, 5, 9, 14, 23)]
NO_END: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Reference:
    """What transformers generates from PROMPTS, to the full length and with end tokens."""

    family: str
    model: PreTrainedModel
    full: list[Tokens]
    end_ids: frozenset[int]
    ended: list[Tokens]
    lm: HFCausalLM = field(repr=False)

    @classmethod
    def of(cls, family: str, model: PreTrainedModel) -> "Reference":
        full = [generated(model, prompt, NO_END) for prompt in PROMPTS]
        # Tokens that come late in these texts, so that some texts end early and some do not.
        end_ids = frozenset(max(ids, key=ids.index) for ids in full[:3])
        ended = [generated(model, prompt, end_ids) for prompt in PROMPTS]
        return cls(family, model, full, end_ids, ended, HFCausalLM(model))


def generated(model: Any, prompt: Sequence[int], end_ids: frozenset[int]) -> Tokens:
    """Let transformers decode one prompt."""
    model.generation_config.eos_token_id = None
    input_ids = torch.tensor([list(prompt)])
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=sorted(end_ids) or None,
        pad_token_id=0,
    )
    return tuple(output[0, len(prompt) :].tolist())


@pytest.fixture(scope="module", params=EACH_FAMILY)
def reference(request: pytest.FixtureRequest) -> Reference:
    return Reference.of(request.param, tiny_model(request.param))


def check(
    reference: Reference, proposer: Proposer, batch: int, to_the_end: bool = False
) -> list[Trace]:
    """Decode PROMPTS with end tokens, or else to the full length, and compare."""
    end_ids, texts = reference.end_ids, reference.ended
    if to_the_end:
        end_ids, texts = NO_END, reference.full
    decoder = SpeculativeDecoder(
        reference.lm,
        proposer,
        Rejection(),
        Sampling(temperature=0),
        Stopping(MAX_NEW_TOKENS, end_ids),
        batch,
    )
    requests = [Request(str(number), prompt) for number, prompt in enumerate(PROMPTS)]
    traces = decoder.decode(requests)
    for prompt, trace, ids in zip(PROMPTS, traces, texts, strict=True):
        assert trace.output_ids == ids, (
            f"{reference.family}, {type(proposer).__name__}, batch={batch}, prompt of"
            f" {len(prompt)}: differs from generate() at token {first_difference(trace, ids)}"
        )
        assert trace.finish_reason == ("eos" if ids[-1] in end_ids else "length")
    return traces


def first_difference(trace: Trace, expected: Tokens) -> int:
    pairs = zip(trace.output_ids, expected, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(expected))


def acceptance(traces: Sequence[Trace]) -> float:
    """Accepted of drafted tokens."""
    steps = [step for trace in traces for step in trace.steps]
    return sum(step.accepted for step in steps) / max(1, sum(step.drafted for step in steps))


# --- proposers ----------------------------------------------------------------------------------


class RecordedTree:
    """Two candidates at each of two levels; the right one is mostly among them, in either place.

    Accepted paths skip cells, which chains never do.
    """

    draw = Draw.DETERMINISTIC
    layers: Sequence[Layer] = ()
    max_depth = 2

    def __init__(self, texts: Sequence[Tokens]):
        self._texts = texts

    def open(self, num_rows: int, capacity: int, vocab_size: int) -> None: ...

    def reset(self, contexts: Sequence[Context]) -> None: ...

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        return [Proposal(self._tree(context)) for context in contexts]

    def _tree(self, context: Context) -> CandidateTree:
        done = len(context.token_ids) - context.num_prompt_tokens
        token_ids, parents, parent = [context.token_ids[-1]], [-1], 0
        for right in self._texts[int(context.request_id)][done : done + 2]:
            wrong = (right + 1) % VOCAB_SIZE
            pair = [right, wrong] if context.draft_stream.accept(0.5) else [wrong, right]
            if context.draft_stream.accept(0.2):
                pair = [wrong, (right + 2) % VOCAB_SIZE]
            # Each level hangs from the right token of the one above; a leaf hangs beside it.
            token_ids += pair
            parents += [parent, parent]
            parent = token_ids.index(right, len(token_ids) - 2) if right in pair else parent
        return CandidateTree(tuple(token_ids), tuple(parents))

    def update(self, contexts: Sequence[Context], verdicts: Sequence[Verdict]) -> None: ...


def draft_model(reference: Reference) -> Proposer:
    return DraftModel(HFCausalLM(noisy_copy(reference.model, 0.05)), Chain(GAMMA))


def cascade(reference: Reference) -> Proposer:
    """The middle model reads trees with branches, some of which are right."""
    middle = HFCausalLM(noisy_copy(reference.model, 0.05))
    return Cascade(middle, RecordedTree(reference.full), Rejection(), Chain(GAMMA))


def recorded(reference: Reference) -> Proposer:
    texts = {str(number): ids for number, ids in enumerate(reference.full)}
    return Recorded(texts, GAMMA, accuracy=0.7)


PROPOSERS: dict[str, Callable[[Reference], Proposer]] = {
    "none": lambda reference: NoProposer(),
    "ngram": lambda reference: NGram(GAMMA),
    "draft_model": draft_model,
    "cascade": cascade,
    "recorded": recorded,
    "recorded_tree": lambda reference: RecordedTree(reference.full),
}


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("proposer", PROPOSERS)
def test_greedy_text_is_that_of_generate(reference: Reference, proposer: str, batch: int) -> None:
    """With end tokens, at which some of the texts end early."""
    check(reference, PROPOSERS[proposer](reference), batch)


@pytest.mark.parametrize("proposer", ["draft_model", "cascade", "recorded_tree"])
def test_rows_are_taken_over_by_waiting_requests(reference: Reference, proposer: str) -> None:
    """Three rows for five prompts, texts of full length: rows are used again."""
    traces = check(reference, PROPOSERS[proposer](reference), batch=3, to_the_end=True)
    share = acceptance(traces)
    assert 0.1 < share < 0.95, f"acceptance {share:.2f}: one of the two ways is not tested"


def test_the_references_are_worth_comparing_with(reference: Reference) -> None:
    """Texts that are all alike, that repeat one token, or that never end would not test much."""
    assert len(set(reference.full)) == len(PROMPTS)
    assert max(len(set(ids)) for ids in reference.full) >= 6, "nothing but repetitions"
    assert all(len(ids) == MAX_NEW_TOKENS for ids in reference.full)
    lengths = [len(ids) for ids in reference.ended]
    assert min(lengths) < MAX_NEW_TOKENS
    assert max(lengths) > 4


# --- padded vocabularies ------------------------------------------------------------------------


def widened(model: PreTrainedModel, silent: bool) -> PreTrainedModel:
    """Pad the vocabulary, as families do for their larger members; `silent` rows say logit 0."""
    copy: Any = noisy_copy(model, amount=0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        copy.resize_token_embeddings(PADDED, mean_resizing=False)
        padding = copy.get_output_embeddings().weight[VOCAB_SIZE:]
        padding.zero_() if silent else padding.normal_(std=1.0)
    return copy


@cache
def padded_reference(family: str, by: str) -> Reference:
    """A verifier, and what it generates; the narrow one, or the same with a wider vocabulary."""
    model = tiny_model(family)
    return Reference.of(family, widened(model, silent=True) if by == "verifier" else model)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("wider", ["draft", "verifier"])
def test_vocabularies_may_be_padded_differently(wider: str, family: str, batch: int) -> None:
    """A wider draft must not propose what the verifier lacks; a narrower one lacks nothing real."""
    reference = padded_reference(family, wider)
    draft = noisy_copy(tiny_model(family), 0.05)
    if wider == "draft":  # with large logits in the padding
        draft = widened(draft, silent=False)
    lm = HFCausalLM(draft)
    assert {lm.vocab_size, reference.lm.vocab_size} == {VOCAB_SIZE, PADDED}
    traces = check(reference, DraftModel(lm, Chain(GAMMA)), batch, to_the_end=True)
    assert 0.1 < acceptance(traces) < 0.95

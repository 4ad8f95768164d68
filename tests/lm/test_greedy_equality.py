"""At temperature 0 in fp32, every proposer emits `generate(do_sample=False)`, token for token.

The stock model's own `generate`, with its own cache and masks, prompt by prompt, is the reference;
it runs once for each family.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from families import FAMILIES, VOCAB_SIZE, noisy_copy, random_ids, tiny_model
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
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.ngram import NGram
from specdec.proposer.none import NoProposer
from specdec.proposer.recorded import Recorded
from specdec.tree.chain import Chain
from specdec.verification.rejection import Rejection

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
        # Tokens that these texts hold, so that some texts end early and others do not.
        end_ids = frozenset([full[0][1], full[1][4], full[2][9]])
        ended = [generated(model, prompt, end_ids) for prompt in PROMPTS]
        return cls(family, model, full, end_ids, ended, HFCausalLM(model))


def generated(model: PreTrainedModel, prompt: Sequence[int], end_ids: frozenset[int]) -> Tokens:
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


@pytest.fixture(scope="module", params=FAMILIES)
def reference(request: pytest.FixtureRequest) -> Reference:
    return Reference.of(request.param, tiny_model(request.param))


def decoded(
    reference: Reference, proposer: Proposer, batch: int, end_ids: frozenset[int]
) -> list[Trace]:
    decoder = SpeculativeDecoder(
        reference.lm,
        proposer,
        Rejection(),
        Sampling(temperature=0),
        Stopping(MAX_NEW_TOKENS, end_ids),
        batch,
    )
    requests = [Request(str(number), prompt) for number, prompt in enumerate(PROMPTS)]
    return decoder.decode(requests)


def check(reference: Reference, proposer: Proposer, batch: int) -> list[Trace]:
    """Compare with and without end tokens; return all traces."""
    traces: list[Trace] = []
    for end_ids, expected in ((NO_END, reference.full), (reference.end_ids, reference.ended)):
        found = decoded(reference, proposer, batch, end_ids)
        for prompt, trace, ids in zip(PROMPTS, found, expected, strict=True):
            assert trace.output_ids == ids, (
                f"{reference.family}, {type(proposer).__name__}, batch={batch}, prompt of"
                f" {len(prompt)}: differs from generate() at token {first_difference(trace, ids)}"
            )
            at_end = len(ids) < MAX_NEW_TOKENS or ids[-1] in end_ids
            assert trace.finish_reason == ("eos" if at_end else "length")
        traces += found
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


def recorded(reference: Reference) -> Proposer:
    texts = {str(number): ids for number, ids in enumerate(reference.full)}
    return Recorded(texts, GAMMA, accuracy=0.7)


PROPOSERS: dict[str, Callable[[Reference], Proposer]] = {
    "none": lambda reference: NoProposer(),
    "ngram": lambda reference: NGram(GAMMA),
    "draft_model": draft_model,
    "recorded": recorded,
    "recorded_tree": lambda reference: RecordedTree(reference.full),
}


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("proposer", PROPOSERS)
def test_greedy_text_is_that_of_generate(reference: Reference, proposer: str, batch: int) -> None:
    traces = check(reference, PROPOSERS[proposer](reference), batch)
    if proposer.startswith(("draft", "recorded")):
        share = acceptance(traces)
        assert 0.1 < share < 0.95, f"acceptance {share:.2f}: one of the two ways is not tested"


def test_the_references_differ_and_some_end_early(reference: Reference) -> None:
    """Five equal texts, or texts without an end, would not test much."""
    assert len(set(reference.full)) > 1
    lengths = [len(ids) for ids in reference.ended]
    assert min(lengths) < MAX_NEW_TOKENS
    assert all(len(ids) == MAX_NEW_TOKENS for ids in reference.full)


def test_rows_are_taken_over_by_waiting_requests(reference: Reference) -> None:
    """Three rows for five prompts of unlike lengths: rows are reused, and are not neighbours."""
    check(reference, draft_model(reference), batch=3)


# --- padded vocabularies ------------------------------------------------------------------------


def widened(model: PreTrainedModel, silent: bool) -> PreTrainedModel:
    """Pad the vocabulary, as families do for their larger members; `silent` rows say logit 0."""
    copy = noisy_copy(model, amount=0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        copy.resize_token_embeddings(PADDED, mean_resizing=False)
        padding = copy.get_output_embeddings().weight[VOCAB_SIZE:]
        padding.zero_() if silent else padding.normal_(std=1.0)
    return copy


PADDABLE = ["llama", "gpt2", "gemma3_text"]


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("family", PADDABLE)
def test_a_draft_with_more_logits_than_the_verifier(family: str, batch: int) -> None:
    """Its padding has large logits, so that tokens which the verifier lacks would be drafted."""
    reference = Reference.of(family, tiny_model(family))
    draft = HFCausalLM(widened(noisy_copy(reference.model, 0.05), silent=False))
    assert (draft.vocab_size, reference.lm.vocab_size) == (PADDED, VOCAB_SIZE)
    traces = check(reference, DraftModel(draft, Chain(GAMMA)), batch)
    assert 0.1 < acceptance(traces) < 0.95


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("family", PADDABLE)
def test_a_draft_with_fewer_logits_than_the_verifier(family: str, batch: int) -> None:
    model = tiny_model(family)
    reference = Reference.of(family, widened(model, silent=True))
    draft = HFCausalLM(noisy_copy(model, 0.05))
    assert (draft.vocab_size, reference.lm.vocab_size) == (VOCAB_SIZE, PADDED)
    traces = check(reference, DraftModel(draft, Chain(GAMMA)), batch)
    assert 0.1 < acceptance(traces) < 0.95

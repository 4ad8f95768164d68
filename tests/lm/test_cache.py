"""The KV cache: cells are computed once, kept without copies, and are their own row's business."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.core.protocols import Forward
from specdec.core.sampling import Sampling
from specdec.core.trace import Trace
from specdec.core.values import Layer
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm import hf
from specdec.lm.cache import RowCache, RowLayer
from specdec.lm.hf import HFCausalLM
from specdec.proposer.draft_model import DraftModel
from specdec.proposer.none import NoProposer
from specdec.tree.chain import Chain
from specdec.verification.rejection import Rejection
from tests.support.families import noisy_copy, plain_logits, random_ids, tiny_model
from tests.support.ragged import EXACT, Conversation, difference

GAMMA = 3
CPU = torch.device("cpu")
CACHED_FAMILIES = ["llama", "gemma3_text", "opt"]


# --- cells are computed once --------------------------------------------------------------------


class Reader(HFCausalLM):
    """A model that notes, for every cell it computes, the whole text up to that cell."""

    def open(self, num_rows: int, capacity: int) -> None:
        super().open(num_rows, capacity)
        self.texts: list[list[int]] = [[] for _ in range(num_rows)]
        self.computed: list[tuple[int, ...]] = []

    def _read(self, row: int, token_ids: Sequence[int]) -> None:
        for token in token_ids:
            self.texts[row].append(token)
            self.computed.append(tuple(self.texts[row]))

    def prefill(
        self, rows: Sequence[int], token_ids: Sequence[Sequence[int]], layers: Sequence[Layer] = ()
    ) -> list[dict[Layer, Tensor]]:
        for row, ids in zip(rows, token_ids, strict=True):
            self._read(row, ids)
        return super().prefill(rows, token_ids, layers)

    def forward(
        self,
        rows: Sequence[int],
        token_ids: Tensor,
        positions: Tensor | None = None,
        attend: Tensor | None = None,
        layers: Sequence[Layer] = (),
    ) -> Forward:
        assert attend is None, "a chain is ordinary text and needs no mask"
        for row, ids in zip(rows, token_ids.tolist(), strict=True):
            self._read(row, ids)
        return super().forward(rows, token_ids, positions, attend, layers)

    def keep(self, row: int, prefix: int, nodes: Sequence[int] = ()) -> None:
        super().keep(row, prefix, nodes)
        self.texts[row] = self.texts[row][: self.length(row)]


def decode(
    verifier: HFCausalLM,
    draft: HFCausalLM,
    prompts: Sequence[Sequence[int]],
    batch: int = 1,
    max_new_tokens: int = 40,
) -> list[Trace]:
    decoder = SpeculativeDecoder(
        verifier,
        DraftModel(draft, Chain(GAMMA)),
        Rejection(),
        Sampling(0.8),
        Stopping(max_new_tokens),
        batch,
    )
    return decoder.decode([Request(str(n), prompt) for n, prompt in enumerate(prompts)])


def sums(trace: Trace) -> tuple[int, int]:
    """Tokens drafted and tokens accepted."""
    return sum(step.drafted for step in trace.steps), sum(step.accepted for step in trace.steps)


@pytest.mark.parametrize("family", CACHED_FAMILIES)
def test_no_cell_is_ever_computed_twice(family: str) -> None:
    """Neither of the verifier nor of the draft, whatever is accepted: a text is read once."""
    model = tiny_model(family)
    verifier, draft = Reader(model), Reader(noisy_copy(model))
    prompt = random_ids(9, seed=0)
    (trace,) = decode(verifier, draft, [prompt])
    drafted, accepted = sums(trace)
    assert 0 < accepted < drafted, "both acceptance and rejection must happen, or nothing is shown"
    for name, lm in (("verifier", verifier), ("draft", draft)):
        again = len(lm.computed) - len(set(lm.computed))
        assert again == 0, f"{family}: the {name} computed {again} cells a second time"

    # The last token is committed, but nobody needs to read it any more.
    committed = len(prompt) + len(trace.output_ids) - 1
    assert (
        verifier.num_cells == len(verifier.computed) == len(prompt) - 1 + drafted + len(trace.steps)
    )
    assert draft.num_cells == len(draft.computed) <= committed + drafted - accepted, (
        "more cells than committed tokens and rejected drafts"
    )


@pytest.mark.parametrize("family", CACHED_FAMILIES)
def test_a_draft_that_is_always_right_reads_each_token_once(family: str) -> None:
    model = tiny_model(family)
    verifier, draft = Reader(model), Reader(model)
    prompt = random_ids(9, seed=0)
    (trace,) = decode(verifier, draft, [prompt], max_new_tokens=4 * (GAMMA + 1))
    assert sums(trace) == (4 * GAMMA, 4 * GAMMA)
    # All but the last draft token of the last step and the verifier's token behind it.
    assert draft.num_cells == len(prompt) + len(trace.output_ids) - 2
    assert verifier.num_cells == len(prompt) + len(trace.output_ids) - 1


def test_calls_are_prefills_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One verifier forward a step; drafting d tokens is d draft forwards, catching up included."""
    monkeypatch.setattr(hf, "PREFILL_CHUNK", 4)
    model = tiny_model("llama")
    verifier, draft = HFCausalLM(model), HFCausalLM(noisy_copy(model))
    (trace,) = decode(verifier, draft, [random_ids(10, seed=0)])
    assert verifier.num_calls == 3 + len(trace.steps)  # 9 tokens in chunks of 4, 4 and 1
    assert draft.num_calls == 3 + sum(step.drafted for step in trace.steps)
    assert draft.num_calls == 3 + sum(step.draft_calls or 0 for step in trace.steps)


def test_rows_in_flight_share_their_calls() -> None:
    """Three requests of one length and no proposer: as many calls as one request needs."""
    model = tiny_model("llama")
    lm = HFCausalLM(model)
    decoder = SpeculativeDecoder(lm, NoProposer(), Rejection(), Sampling(0), Stopping(12), batch=3)
    decoder.decode([Request(str(n), random_ids(6, seed=n)) for n in range(3)])
    assert lm.num_calls == 1 + 12
    assert lm.num_cells == 3 * (5 + 12)


def test_the_counters_begin_anew_with_open() -> None:
    lm = HFCausalLM(tiny_model("llama"))
    lm.prefill([0], [[3, 4, 5]])
    lm.forward([0], torch.tensor([[6, 7]]))
    assert (lm.num_calls, lm.num_cells) == (2, 5)
    lm.open(1, 8)
    assert (lm.num_calls, lm.num_cells, lm.length(0)) == (0, 0, 0)


# --- keep ---------------------------------------------------------------------------------------


@pytest.fixture
def gathers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, list[int]]]:
    """Every move of cells: (row, prefix, nodes), once for each layer."""
    moves: list[tuple[int, int, list[int]]] = []
    gather = RowLayer.gather

    def noting(layer: RowLayer, row: int, prefix: int, nodes: Sequence[int]) -> None:
        moves.append((row, prefix, list(nodes)))
        gather(layer, row, prefix, nodes)

    monkeypatch.setattr(RowLayer, "gather", noting)
    return moves


def buffers(lm: HFCausalLM) -> list[Tensor]:
    """All keys and values."""
    layers: Any = lm._cache.layers
    found = [states for layer in layers for states in (layer.keys, layer.values)]
    return [states for states in found if states is not None]


@pytest.mark.parametrize("family", CACHED_FAMILIES)
def test_decoding_chains_copies_no_cell(
    family: str, gathers: list[tuple[int, int, list[int]]]
) -> None:
    model = tiny_model(family)
    prompts = [random_ids(num, seed=num) for num in (9, 1, 4)]
    decode(HFCausalLM(model), HFCausalLM(noisy_copy(model)), prompts, batch=2)
    assert gathers == [], f"{len(gathers)} moves of cells that were in place already"


@pytest.mark.parametrize("nodes", [(), (0,), (0, 1), (0, 1, 2, 3)])
def test_nodes_that_are_in_place_are_not_touched(
    nodes: tuple[int, ...], gathers: list[tuple[int, int, list[int]]]
) -> None:
    lm = HFCausalLM(tiny_model("mistral"))
    lm.open(2, capacity=16)
    lm.prefill([0, 1], [random_ids(8, 1), random_ids(5, 2)])
    before = [(states.data_ptr(), states.clone()) for states in buffers(lm)]
    assert before
    lm.keep(0, 4, nodes)
    assert gathers == []
    assert (lm.length(0), lm.length(1)) == (4 + len(nodes), 5)
    for (pointer, values), states in zip(before, buffers(lm), strict=True):
        assert states.data_ptr() == pointer
        assert torch.equal(states, values)


def test_a_path_is_gathered_once_in_each_layer_and_nowhere_else(
    gathers: list[tuple[int, int, list[int]]],
) -> None:
    lm = HFCausalLM(tiny_model("llama"))
    lm.open(3, capacity=16)
    lm.prefill([0, 1, 2], [random_ids(10, row) for row in range(3)])
    before = [states.clone() for states in buffers(lm)]
    lm.keep(1, 4, (0, 2, 5))
    assert gathers == [(1, 4, [0, 2, 5])] * 2
    for old, new in zip(before, buffers(lm), strict=True):
        assert torch.equal(new[1, :, :7], old[1][:, [0, 1, 2, 3, 4, 6, 9]]), (
            "wrong cells were moved"
        )
        assert torch.equal(new[[0, 2]], old[[0, 2]]), "another row was touched"


@pytest.mark.parametrize("nodes", [(2, 1), (1, 1)])
def test_nodes_must_ascend(nodes: tuple[int, ...]) -> None:
    lm = HFCausalLM(tiny_model("llama"))
    lm.prefill([0], [random_ids(6, 1)])
    with pytest.raises(AssertionError):
        lm.keep(0, 2, nodes)


def test_a_row_cannot_be_rewound_forwards() -> None:
    lm = HFCausalLM(tiny_model("llama"))
    lm.prefill([0], [random_ids(3, 1)])
    with pytest.raises(AssertionError):
        lm.keep(0, 4)


# --- buffers ------------------------------------------------------------------------------------


def pointers(lm: HFCausalLM) -> list[int]:
    return [states.data_ptr() for states in buffers(lm)]


@pytest.mark.parametrize("family", CACHED_FAMILIES)
def test_opening_again_reuses_buffers_and_forgets_what_they_held(family: str) -> None:
    model = tiny_model(family)
    lm = HFCausalLM(model)
    lm.open(2, capacity=32)
    lm.prefill([0, 1], [random_ids(20, 1), random_ids(11, 2)])
    first = pointers(lm)
    with torch.inference_mode():
        for states in buffers(lm):
            states.fill_(1e3)  # whatever is read of it would show
    for capacity in (32, 7):
        lm.open(2, capacity)
        texts = [random_ids(4, 3), random_ids(9, 4)]
        lm.prefill([0, 1], texts)
        assert pointers(lm) == first, f"opened with {capacity} of 32 cells, but allocated anew"
        logits = lm.forward([0, 1], torch.tensor([[5], [6]])).logits
        for row, last in ((0, 5), (1, 6)):
            error = difference(logits[row, 0], plain_logits(model, [*texts[row], last])[-1])
            assert error < EXACT, f"{family}: row {row} reads old cells ({error:.1e})"


@pytest.mark.parametrize(("num_rows", "capacity"), [(3, 16), (1, 16), (2, 33)])
def test_other_rows_or_a_larger_capacity_need_new_buffers(num_rows: int, capacity: int) -> None:
    lm = HFCausalLM(tiny_model("llama"))
    lm.open(2, capacity=32)
    lm.prefill([0, 1], [random_ids(4, 1), random_ids(4, 2)])
    lm.open(num_rows, capacity)
    lm.prefill([0], [random_ids(4, 1)])
    assert [states.shape[0] for states in buffers(lm)] == [num_rows] * 4
    assert all(states.shape[2] >= capacity for states in buffers(lm))


def test_no_more_cells_than_the_contexts_allow() -> None:
    """However many tokens are asked for; the draft's context may be the shorter one."""
    verifier = HFCausalLM(tiny_model("llama", max_position_embeddings=40))
    draft = HFCausalLM(tiny_model("llama", max_position_embeddings=24))
    decoder = SpeculativeDecoder(
        verifier, DraftModel(draft, Chain(3)), Rejection(), Sampling(0), Stopping(500_000), batch=2
    )
    requests = [Request(str(num), random_ids(num, seed=num)) for num in (9, 4)]
    traces = decoder.decode(requests)
    assert {trace.finish_reason for trace in traces} == {"context"}
    assert [len(trace.output_ids) for trace in traces] == [31, 36]
    assert max(states.shape[2] for states in buffers(verifier)) <= 40 + 3 + 1
    assert max(states.shape[2] for states in buffers(draft)) <= 24 + 3


def test_within_the_capacity_nothing_is_allocated() -> None:
    model = tiny_model("llama")
    verifier, draft = HFCausalLM(model), HFCausalLM(noisy_copy(model))
    decode(verifier, draft, [random_ids(12, 1)])
    before = pointers(verifier) + pointers(draft)
    decode(verifier, draft, [random_ids(12, 2)])
    assert pointers(verifier) + pointers(draft) == before


def test_two_caches_over_one_model_do_not_meet() -> None:
    """Weights are shared between a verifier and a draft that is the same model; cells are not."""
    model = tiny_model("llama")
    first, second = HFCausalLM(model), HFCausalLM(model)
    text = random_ids(9, seed=1)
    first.prefill([0], [text[:-1]])
    second.prefill([0], [random_ids(14, seed=2)])
    logits = first.forward([0], torch.tensor([text[-1:]])).logits[0, 0]
    assert difference(logits, plain_logits(model, text)[-1]) < EXACT
    assert (first.length(0), second.length(0)) == (9, 14)


# --- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CACHED_FAMILIES)
def test_interleaved_rows_do_not_disturb_each_other(family: str) -> None:
    """Rows that take turns, in calls of their own, say what they say alone; bit for bit."""
    model = tiny_model(family)
    schedule = [(0, 0), (2, 1), (0, 2), (1, 0), (2, 0), (1, 2), (0, 1), (2, 4)]

    def spoken(rows: Sequence[int]) -> dict[int, list[Tensor]]:
        talk = Conversation(model, [9, 2, 6], capacity=64)
        said: dict[int, list[Tensor]] = {row: [] for row in rows}
        for row in rows:
            talk.lm.prefill([row], [talk.texts[row]])
        for number, (row, shape) in enumerate(schedule):
            if row in rows:
                talk._seed = 7000 + number  # the same trees, whoever else speaks
                said[row].append(talk.step([row], [shape])[0].logits)
        assert talk.worst < EXACT
        return said

    together = spoken([0, 1, 2])
    for row in range(3):
        alone = spoken([row])[row]
        for turn, (first, second) in enumerate(zip(together[row], alone, strict=True)):
            assert torch.equal(first, second), f"{family}: row {row} was disturbed by turn {turn}"


def test_a_row_that_is_emptied_begins_again() -> None:
    """What a finished request leaves behind is of no consequence to the next one in its row."""
    model = tiny_model("gemma3_text")
    talk = Conversation(model, [12, 9], capacity=64)
    talk.prefill()
    talk.step([0, 1], [0, 2])
    talk.lm.keep(0, 0)
    talk.texts[0] = random_ids(3, seed=50)
    talk.lm.prefill([0], [talk.texts[0]])
    talk.step([0, 1], [2, 0])
    talk.check_texts()
    assert talk.worst < EXACT, f"{talk.worst:.1e}"


# --- by hand ------------------------------------------------------------------------------------


def cells(*numbers: int) -> Tensor:
    """One row of new states, [1 head, M, dim 1]."""
    return torch.tensor(numbers, dtype=torch.float32).view(1, -1, 1)


def update(cache: RowCache, rows: list[int], new: list[list[int]]) -> list[list[float]]:
    """Write new cells of some rows, as a model's only layer would; return what attention sees."""
    num_new = len(new[0])
    cache.place(rows, num_new, CPU)
    keys = torch.stack([cells(*numbers) for numbers in new])
    seen_keys, seen_values = cache.update(keys, -keys, 0)
    for row in rows:
        cache.lengths[row] += num_new
    assert torch.equal(seen_keys, -seen_values)
    return seen_keys.flatten(1).tolist()


def test_a_cache_written_by_hand() -> None:
    cache = RowCache(num_layers=1, num_rows=3, capacity=4)
    assert update(cache, [0, 1], [[1, 2], [11, 12]]) == [[1, 2], [11, 12]]
    assert update(cache, [1], [[13]]) == [[11, 12, 13]]
    # Rows of unlike lengths, not neighbours, and not in order: each gets its own cells.
    assert update(cache, [2, 0], [[21], [3]]) == [[21, 0, 0], [1, 2, 3]]
    cache.keep(1, 1, [1])
    assert cache.lengths == [3, 2, 1]
    # Beyond the capacity of 4: old cells stay, and row 1 has [11, 13].
    seen = update(cache, [0, 1, 2], [[4, 5], [14, 15], [22, 23]])
    assert [seen[0], seen[1][:4], seen[2][:3]] == [[1, 2, 3, 4, 5], [11, 13, 14, 15], [21, 22, 23]]
    cache.keep(0, 0, [])
    assert update(cache, [0], [[9]]) == [[9]]
    assert cache.lengths == [1, 4, 3]


def test_rows_that_are_neighbours_are_read_without_a_copy() -> None:
    cache = RowCache(num_layers=1, num_rows=3, capacity=8)
    cache.place([1, 2], 2, CPU)
    keys, _ = cache.update(torch.ones(2, 1, 2, 1), torch.ones(2, 1, 2, 1), 0)
    first: Any = cache.layers[0]
    whole = first.keys
    assert whole is not None
    assert keys.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()

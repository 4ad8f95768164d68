"""Programs can be captured: nothing of a step is read by the host, or taken for a constant."""

from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.core.draft_chain import DraftChain
from specdec.core.sampling import Sampling
from specdec.lm.cache import RowCache, cache_word
from specdec.lm.mask import MaskKind
from specdec.runtime.attention import folding
from specdec.runtime.program import FULL, SLIDING, ChainProgram, Inputs, Wanted, program_of
from tests.support.captured import CAPTURABLE, capturable
from tests.support.families import VOCAB_SIZE
from tests.support.tape import TapeGraph

CAPACITY, NUM_NEW, DEPTH = 24, 3, 3
FILTERED = DraftChain(DEPTH, Sampling(0.8, top_k=40, top_p=0.9, min_p=0.01), VOCAB_SIZE)


def chain_of(model: Any) -> ChainProgram:
    """Say what it takes to draft with a model."""
    kind = MaskKind.of(model.config.get_text_config())
    return ChainProgram(FILTERED, kind.window, kind.hybrid, CAPACITY - 1)


def chained(seed: int, buffers: tuple[Tensor, ...]) -> Inputs:
    """Draft behind two rows of unlike lengths, one of which is padded."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(2, CAPACITY - NUM_NEW - DEPTH, (2, 1), generator=generator)
    token_ids = torch.randint(VOCAB_SIZE, (2, NUM_NEW), generator=generator)
    slots = starts + torch.arange(NUM_NEW)
    last = torch.randint(NUM_NEW, (2,), generator=generator)
    draws = last, torch.rand(2, DEPTH, dtype=torch.float64, generator=generator)
    return Inputs(token_ids, slots.clone(), slots, torch.arange(CAPACITY), (), buffers, draws)


def drawn(model: Any, seed: int, buffers: tuple[Tensor, ...]) -> Inputs:
    """Make a step of two rows of unlike lengths, each with a root and two branches."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(2, CAPACITY - NUM_NEW, (2, 1), generator=generator)
    token_ids = torch.randint(VOCAB_SIZE, (2, NUM_NEW), generator=generator)
    slots = starts + torch.arange(NUM_NEW)
    positions = starts + torch.tensor([0, 1, 1])
    columns = torch.arange(CAPACITY)
    attend = (columns < starts[:, :, None]).repeat(1, NUM_NEW, 1)
    rows = torch.arange(2)
    for node, seen in enumerate(([0], [0, 1], [0, 2])):
        for other in seen:
            attend[rows, node, starts[:, 0] + other] = True
    key_positions = columns.repeat(2, 1).scatter(1, slots, positions)
    kind = MaskKind.of(model.config.get_text_config())
    masks = kind.masks(attend, positions, key_positions, model.dtype)
    given = (masks,) if isinstance(masks, Tensor) else (masks[FULL], masks[SLIDING])
    return Inputs(token_ids, positions, slots, columns, given, buffers)


def buffers_of(model: Any, word: str) -> tuple[Tensor, ...]:
    """Let the model write once, so that the shapes of its buffers are known."""
    cache = RowCache(model.config.get_text_config().num_hidden_layers, 2, CAPACITY)
    token_ids = torch.arange(2 * (CAPACITY - 1)).view(2, -1) % VOCAB_SIZE
    cache.place([0, 1], token_ids.shape[1], model.device)
    kind = MaskKind.of(model.config.get_text_config())
    positions = torch.arange(token_ids.shape[1]).expand(2, -1)
    attend = positions[:, None, :] <= positions[:, :, None]
    masks = kind.of_cells(cache, [0, 1], positions, attend, model.dtype)
    with torch.no_grad():
        model(
            input_ids=token_ids,
            position_ids=positions,
            attention_mask=masks,
            **{word: cache},
            use_cache=True,
            output_hidden_states=True,
        )
    return cache.buffers(range(2), CAPACITY)


def filled(inputs: Inputs, more: Inputs) -> None:
    """Copy another step into the tensors of this one."""
    for ours, theirs in zip(flat(inputs), flat(more), strict=True):
        ours.copy_(theirs)


def flat(inputs: Inputs) -> list[Tensor]:
    return [*inputs[:4], *inputs.masks, *inputs.buffers, *inputs.draws]


@pytest.mark.parametrize("is_chain", [False, True])
@pytest.mark.parametrize("family", CAPTURABLE)
def test_a_captured_program_is_every_step(
    family: str, is_chain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU; on processors numpy sorts.
    monkeypatch.setattr("specdec.core.sampling.ascending", lambda probs: probs.sort(dim=-1).values)
    model = capturable(family)
    word = cache_word(model.forward)
    before = buffers_of(model, word)
    wanted: Wanted = chain_of(model) if is_chain else (0, "final")
    program = program_of(model, word, wanted)

    def made(seed: int, buffers: tuple[Tensor, ...]) -> Inputs:
        return chained(seed, buffers) if is_chain else drawn(model, seed, buffers)

    static = made(0, tuple(each.clone() for each in before))
    graph = TapeGraph()
    with folding(model):
        results = graph.capture(lambda: program(*static))
        for seed in (1, 2, 3):
            fresh = made(seed, tuple(each.clone() for each in before))
            with torch.no_grad():
                expected = program(*fresh)
            graph.poison()
            filled(static, made(seed, before))
            graph.replay()
            for ours, theirs in zip(results, expected, strict=True):
                assert torch.equal(ours, theirs)
            for ours, theirs in zip(static.buffers, fresh.buffers, strict=True):
                assert torch.equal(ours, theirs)


def test_numbers_of_the_first_run_stay() -> None:
    """The silent fault: a Python number that another step would have otherwise."""
    step = [1]
    x = torch.zeros(2)
    graph = TapeGraph()
    (result,) = graph.capture(lambda: [x + step[0]])
    step[0], _ = 5, x.fill_(10)
    graph.replay()
    assert result.tolist() == [11, 11], "as a graph has it, not 15"

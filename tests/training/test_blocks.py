"""Training blocks: every epoch covers the text once, in an order that nothing else decides."""

import pytest
import torch
from torch import Tensor

from specdec.core.errors import UserError
from specdec.training.data.blocks import ShuffledBlocks

LENGTH = 5
NUM_TOKENS = 5 * 12 + 3


def make(seed: int = 0, num_tokens: int = NUM_TOKENS, length: int = LENGTH) -> ShuffledBlocks:
    """Cut a text whose tokens are their own positions."""
    return ShuffledBlocks(torch.arange(num_tokens), length, seed)


def epoch(blocks: ShuffledBlocks, number: int) -> Tensor:  # [per_epoch, length]
    return blocks.take(number * blocks.per_epoch, blocks.per_epoch)


@pytest.mark.parametrize("number", range(6))
def test_an_epoch_holds_each_of_its_blocks_once(number: int) -> None:
    blocks = make()
    positions = epoch(blocks, number).flatten().tolist()
    first, last = min(positions), max(positions)
    assert sorted(positions) == list(range(first, last + 1)), "a block is missing or there twice"
    assert len(positions) >= NUM_TOKENS - 2 * LENGTH, "more than a block is lost at the cuts"


def test_a_block_is_a_piece_of_the_text() -> None:
    for block in epoch(make(), 0).tolist():
        assert block == list(range(block[0], block[0] + LENGTH))


def test_every_epoch_cuts_and_orders_the_text_anew() -> None:
    blocks = make()
    epochs = [epoch(blocks, number) for number in range(8)]
    assert len({int(each.min()) for each in epochs}) > 1, "the cuts never shift"
    assert len({tuple(each[:, 0].argsort().tolist()) for each in epochs}) == 8, "the same order"


def test_less_than_a_block_is_left_out_for_ever() -> None:
    blocks = make()
    seen = {int(token) for number in range(60) for token in epoch(blocks, number).flatten()}
    missing = set(range(NUM_TOKENS)) - seen
    assert len(missing) < LENGTH, f"never trained on: {sorted(missing)}"


def test_a_batch_depends_on_its_number_only() -> None:
    """A resumed run starts in the middle and must see what an undisturbed one saw."""
    blocks = make()
    in_order = [blocks.take(first, 4) for first in range(0, 40, 4)]
    for index in (7, 0, 9, 3, 3):
        assert torch.equal(make().take(4 * index, 4), in_order[index]), "depends on the history"
        assert torch.equal(blocks.take(4 * index, 4), in_order[index]), "depends on the history"


def test_a_large_batch_is_its_small_ones() -> None:
    """Across the end of an epoch too: 11 blocks each, so that 8 to 15 lie in two."""
    blocks = make()
    assert blocks.per_epoch == 11
    whole = blocks.take(8, 8)
    assert torch.equal(whole, torch.cat([make().take(8 + number, 1) for number in range(8)]))


def test_the_seed_decides() -> None:
    assert torch.equal(epoch(make(seed=3), 0), epoch(make(seed=3), 0))
    assert not torch.equal(epoch(make(seed=3), 0), epoch(make(seed=4), 0))


def test_global_randomness_plays_no_part() -> None:
    before = epoch(make(), 0)
    state = torch.get_rng_state()
    torch.rand(10)
    blocks = make()
    drawn = torch.get_rng_state()
    assert torch.equal(epoch(blocks, 0), before)
    assert torch.equal(torch.get_rng_state(), drawn), "the order draws from the global stream"
    torch.set_rng_state(state)


def test_two_blocks_are_the_least() -> None:
    assert epoch(make(num_tokens=10), 0).shape == (1, 5)
    with pytest.raises(UserError, match=r"data\.path: 9 tokens .* blocks of 5"):
        make(num_tokens=9)

"""Masks by hand: who attends to whom, and what a window hides."""

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from specdec.core.errors import UserError
from specdec.core.tree import CandidateTree
from specdec.lm import mask
from specdec.lm.batch import TreeBatch, pad
from specdec.lm.mask import FULL, SLIDING, MaskKind, PlainText
from tests.support.families import FAMILIES, WINDOW, WINDOWED, tiny_model

CPU = torch.device("cpu")


def pictures(attend: Tensor) -> list[list[str]]:  # [B, M, L] bool
    """Draw masks as the docstrings do."""
    return [["".join(".x"[cell] for cell in row) for row in rows] for rows in attend.int().tolist()]


def test_causal() -> None:
    assert pictures(mask.causal([3, 1], 2, CPU)) == [["xxxx.", "xxxxx"], ["xx...", "xxx.."]]


def test_trees() -> None:
    """Row 0: 2 cached cells, a branching tree; row 1: none, a root alone and padding."""
    tree = CandidateTree((0, 1, 2, 3), (-1, 0, 0, 1))
    attend = mask.trees([2, 0], [tree.ancestors(), [[True]]], CPU)
    assert pictures(attend) == [
        ["xxx...", "xxxx..", "xxx.x.", "xxxx.x"],
        ["x.....", ".x....", "..x...", "...x.."],
    ]


def test_trees_become_a_batch() -> None:
    tree = CandidateTree((9, 1, 2, 3), (-1, 0, 0, 1))
    token_ids, positions, attend = TreeBatch.of([tree, CandidateTree.chain(7, [8])], [2, 5], CPU)
    assert token_ids.tolist() == [[9, 1, 2, 3], [7, 8, 0, 0]]
    assert positions is not None
    assert [positions[0].tolist(), positions[1, :2].tolist()] == [[2, 3, 3, 4], [5, 6]]
    assert attend is not None
    assert attend.shape == (2, 4, 9)


def test_chains_need_neither_mask_nor_positions() -> None:
    chains = [CandidateTree.chain(7, [8, 9]), CandidateTree.chain(5, [])]
    token_ids, positions, attend = TreeBatch.of(chains, [4, 2], CPU)
    assert token_ids.tolist() == [[7, 8, 9], [5, 0, 0]]
    assert positions is None
    assert attend is None


def test_pad() -> None:
    assert pad([[1], [2, 3]], CPU).tolist() == [[1, 0], [2, 3]]
    assert pad([[1], [2, 3]], CPU).dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_masks_are_floats_to_be_added(dtype: torch.dtype) -> None:
    """Booleans would be added by eager attention: silently wrong."""
    added = mask.additive(mask.causal([1], 2, CPU), dtype)
    lowest = torch.finfo(dtype).min
    assert added.dtype == dtype
    assert added.tolist() == [[[[0.0, 0.0, lowest], [0.0, 0.0, 0.0]]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_text_has_the_same_masks_as_everything_else(dtype: torch.dtype) -> None:
    """Views of stored tensors, asked for in any order, while the stored ones grow."""
    plain = PlainText(MaskKind(None, hybrid=False), dtype, CPU)
    for start, num_new in [
        (0, 3),
        (5, 1),
        (4, 3),
        (6, 1),
        (0, 70),
        (70, 1),
        (3, 3),
        (300, 5),
        (0, 1),
    ]:
        positions, found = plain.at(start, num_new)
        assert positions.tolist() == [list(range(start, start + num_new))]
        expected = mask.additive(mask.causal([start], num_new, CPU), dtype)
        assert found.dtype == dtype
        assert torch.equal(found, expected), f"{num_new} new cells behind {start}"


def test_plain_text_serves_level_rows_without_windows_only() -> None:
    assert PlainText(MaskKind(None, hybrid=False), torch.float32, CPU).serves([4, 4, 4])
    assert not PlainText(MaskKind(None, hybrid=False), torch.float32, CPU).serves([4, 4, 5])
    assert not PlainText(MaskKind(6, hybrid=True), torch.float32, CPU).serves([4, 4])


# --- windows ------------------------------------------------------------------------------------


def allowed(masks: Tensor) -> list[list[str]]:  # [B, 1, M, L] additive
    return pictures(masks[:, 0] == 0)


def test_a_window_counts_positions_not_cells() -> None:
    """Siblings share a position: what is before them is as near to the second as to the first.

    Window 3: a query at position s sees keys at s - 2, s - 1 and s.
    """
    tree = CandidateTree((0, 1, 2, 3), (-1, 0, 0, 2))
    attend = mask.trees([2], [tree.ancestors()], CPU)
    query_positions = torch.tensor([[2, 3, 3, 4]])
    key_positions = torch.tensor([[0, 1, 2, 3, 3, 4]])
    masks = MaskKind(3, hybrid=False).masks(attend, query_positions, key_positions, torch.float32)
    assert isinstance(masks, Tensor)
    assert allowed(masks) == [["xxx...", ".xxx..", ".xx.x.", "..x.xx"]]


def test_hybrid_models_get_both_masks() -> None:
    attend = mask.causal([3], 1, CPU)
    masks = MaskKind(2, hybrid=True).masks(
        attend, torch.tensor([[3]]), torch.tensor([[0, 1, 2, 3]]), torch.float32
    )
    assert isinstance(masks, dict)
    assert {kind: allowed(one) for kind, one in masks.items()} == {
        FULL: [["xxxx"]],
        SLIDING: [["..xx"]],
    }


def test_kinds_are_read_off_the_configuration() -> None:
    for family in FAMILIES:
        kind = MaskKind.of(tiny_model(family).config)
        hybrid = "layer_types" in FAMILIES[family]
        assert kind == MaskKind(WINDOW if family in WINDOWED else None, hybrid), family


def test_a_window_that_no_layer_uses_is_none() -> None:
    """Qwen2 names a window in its configuration and says elsewhere that it is off."""
    config = AutoConfig.for_model(
        "qwen2", sliding_window=4, use_sliding_window=False, num_hidden_layers=2
    )
    assert MaskKind.of(config) == MaskKind(None, hybrid=False)
    config = AutoConfig.for_model(
        "qwen2", sliding_window=4, use_sliding_window=True, num_hidden_layers=2, max_window_layers=1
    )
    assert MaskKind.of(config) == MaskKind(4, hybrid=True)


def test_layers_without_attention_need_no_mask() -> None:
    """Theirs is None where masks come by kind of layer; without other layers there is none."""
    config = AutoConfig.for_model("llama", sliding_window=4)
    config.layer_types = [FULL, "linear_attention"]
    assert MaskKind.of(config) == MaskKind(None, False, ("linear_attention",))
    config.layer_types = [FULL, SLIDING, "conv"]
    kind = MaskKind.of(config)
    assert kind == MaskKind(4, True, ("conv",))
    attend, places = torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.int64)
    found = kind.masks(attend, places, places, torch.float32)
    assert isinstance(found, dict)
    assert found.keys() == {FULL, SLIDING, "conv"}
    assert found["conv"] is None
    config.layer_types = ["linear_attention", "linear_attention"]
    assert not MaskKind.of(config).attends
    config.layer_types = ["linear_attention", "hybrid"]
    assert MaskKind.of(config).attends


@pytest.mark.parametrize("kind", ["chunked_attention", "compressed_sparse_attention"])
def test_layers_that_cannot_be_rewound_are_named(kind: str) -> None:
    config = AutoConfig.for_model("llama")
    config.layer_types = [FULL, kind]
    with pytest.raises(UserError, match=f"llama: layers of kind {kind} cannot be rewound"):
        MaskKind.of(config)

"""A calibration file becomes the best sampled tree, or one line that says why not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec.core.errors import UserError
from specdec.core.randomness import RandomStream
from specdec.core.values import Draw
from specdec.tree.sequoia import Sequoia
from specdec.tree.sequoia_search import PositionalTrees
from tests.support.complaints import assert_damage_is_named

ROW = [0.6, 0.2, 0.1]
BY_DEPTH = [[0.6, 0.2, 0.1], [0.2, 0.15, 0.14]]


def written(folder: Path, acceptance: Any, all_depths: Any) -> str:
    file = folder / "tree.json"
    positional = {"acceptance": acceptance, "all_depths": all_depths}
    file.write_text(json.dumps({"joint": {}, "positional": positional}))
    return str(file)


def test_one_row_serves_at_every_depth(tmp_path: Path) -> None:
    """0.6^4 is more than 0.1, so that three nodes of four, and then five, stand in a line."""
    path = written(tmp_path, [ROW], True)
    assert Sequoia(path, num_nodes=3).nodes == [(0,), (0, 0), (0, 0, 0)]
    tree = Sequoia(path, num_nodes=5)
    assert tree.nodes == [(0,), (1,), (0, 0), (0, 0, 0), (0, 0, 0, 0)]
    assert tree.expected_accepted == pytest.approx(0.6 + 0.2 + 0.36 + 0.216 + 0.1296)
    assert (tree.draw, tree.num_nodes, tree.max_depth) == (Draw.WITHOUT_REPLACEMENT, 5, 4)


def test_rows_by_depth_are_used_at_their_depths(tmp_path: Path) -> None:
    path = written(tmp_path, BY_DEPTH, False)
    tree = Sequoia(path, num_nodes=5)
    assert tree.nodes == [(0,), (1,), (2,), (0, 0), (0, 1)]
    assert tree.expected_accepted == pytest.approx(0.9 + 0.6 * 0.35)


@pytest.mark.parametrize("all_depths", [True, False])
def test_max_depth_bounds_the_tree(tmp_path: Path, all_depths: bool) -> None:
    path = written(tmp_path, [ROW] if all_depths else BY_DEPTH, all_depths)
    tree = Sequoia(path, num_nodes=3, max_depth=1)
    assert tree.nodes == [(0,), (1,), (2,)]
    assert Sequoia(path, num_nodes=9, max_depth=1).num_nodes == 3


def test_a_tree_of_first_children_is_a_sampled_chain(tmp_path: Path) -> None:
    """So that rules for chains may decide on it."""
    assert Sequoia(written(tmp_path, [[0.9, 0.01]], True), num_nodes=4).draw is Draw.SINGLE


def test_children_are_drawn_without_replacement_at_each_node(tmp_path: Path) -> None:
    """As wide as the programme says, and no sibling twice."""
    tree = Sequoia(written(tmp_path, BY_DEPTH, False), num_nodes=12)
    distributions = torch.tensor([[[0.5, 0.3, 0.1, 0.1]]])
    level = tree.expand(None, 1, distributions, [RandomStream(3)])
    assert len(set(level.token_ids[0].tolist())) == 3
    wide = PositionalTrees(BY_DEPTH, 12).nodes(12)
    assert tree.nodes == sorted(wide, key=lambda each: (len(each), each))


@pytest.mark.parametrize("min_confidence", [0.0, 0.4])
def test_confidence_is_handed_on(tmp_path: Path, min_confidence: float) -> None:
    tree = Sequoia(written(tmp_path, [ROW], True), min_confidence=min_confidence)
    assert tree.min_confidence == min_confidence
    assert tree.may_stop == (min_confidence > 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_nodes": 0}, r"^num_nodes=0"),
        ({"max_depth": 0}, r"^max_depth=0"),
        ({"max_depth": 3}, r"^max_depth=3: path=.* was measured to depth 2$"),
        ({"min_confidence": 2.0}, r"^min_confidence=2"),
    ],
    ids=str,
)
def test_bad_options_of_a_sequoia_are_named(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Sequoia(written(tmp_path, BY_DEPTH, False), **options)


@pytest.mark.parametrize("missing", [None, "", 3, "nothing.json", "."])
def test_a_missing_calibration_is_named(missing: Any) -> None:
    with pytest.raises(UserError, match=r"^path="):
        Sequoia(missing)


def test_a_calibration_without_positions_says_how_to_measure_them(tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    file.write_text('{"joint": {"paths": [[0]]}}')
    with pytest.raises(UserError, match=r"tree\.json'.*specdec-calibrate positional=true"):
        Sequoia(str(file))


def test_where_nothing_is_ever_accepted_no_tree_is_grown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tree\.json'.* ever accepted"):
        Sequoia(written(tmp_path, [[0.0, 0.0]], True))


@pytest.mark.parametrize(
    "text",
    [
        '{"posit',
        "[]",
        "3",
        "{}",
        '{"positional": 3}',
        '{"positional": {"acceptance": [[0.5]]}}',
        '{"positional": {"acceptance": 3, "all_depths": true}}',
        '{"positional": {"acceptance": [3], "all_depths": true}}',
        '{"positional": {"acceptance": [], "all_depths": false}}',
        '{"positional": {"acceptance": [[]], "all_depths": false}}',
        '{"positional": {"acceptance": [["a"]], "all_depths": false}}',
        '{"positional": {"acceptance": [[0.5, null]], "all_depths": false}}',
        '{"positional": {"acceptance": [[1.5]], "all_depths": false}}',
        '{"positional": {"acceptance": [[-0.5]], "all_depths": false}}',
        '{"positional": {"acceptance": [[NaN]], "all_depths": false}}',
        '{"positional": {"acceptance": [[0.5], [0.5]], "all_depths": true}}',
        "\udce9",
    ],
)
def test_a_damaged_calibration_is_one_line(tmp_path: Path, text: str) -> None:
    assert_damage_is_named(Sequoia, tmp_path / "tree.json", text)

"""A calibration file becomes the tree that it lists, or one line that says why not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec.calibration.path_counts import PathCounts, calibration
from specdec.core.errors import UserError
from specdec.core.vouching import write_note
from specdec.tree.calibrated import Calibrated
from tests.support.complaints import assert_damage_is_named

# (0, 0) six times, (1, 1) four times, and once each rank alone.
RANKS = torch.tensor([[0, 0]] * 6 + [[1, 1]] * 4 + [[2, 9], [0, 9]])


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "tree.json"
    file.write_text(json.dumps(calibration(PathCounts(RANKS, 2), 5)))
    return str(file)


def nodes(tree: Calibrated) -> set[tuple[int, ...]]:
    """Read the paths off the tree that grows where the likeliest tokens are 0, 1, 2, ..."""
    distribution = torch.tensor([[[0.4, 0.3, 0.2, 0.1]]])
    frontier: list[tuple[int, ...]] = [()]
    found: set[tuple[int, ...]] = set()
    for depth in range(1, tree.max_depth + 1):
        level = tree.expand(None, depth, distribution.expand(1, len(frontier), 4), [])
        pairs = zip(level.parents[0].tolist(), level.token_ids[0].tolist(), strict=True)
        paths = [(*frontier[up], rank) for up, rank in pairs]
        found.update(paths)
        frontier = [paths[place] for place in level.frontier[0].tolist()]
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_nodes": 2}, {(0,), (0, 0)}),
        ({"num_nodes": 4}, {(0,), (0, 0), (1,), (1, 1)}),
        ({"num_nodes": 3, "max_depth": 1}, {(0,), (1,), (2,)}),
        ({"num_nodes": 3, "estimate": "product"}, {(0,), (0, 0), (1,)}),
        ({"num_nodes": 5, "estimate": "product"}, {(0,), (0, 0), (1,), (0, 1), (1, 0)}),
    ],
)
def test_the_first_paths_are_grown(path: str, options: dict[str, Any], expected: set[Any]) -> None:
    tree = Calibrated(path, **options)
    assert nodes(tree) == expected
    assert tree.num_nodes == len(expected)
    assert tree.max_depth == max(map(len, expected))
    assert tree.max_rank == max(map(max, expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_nodes": 6}, r"^num_nodes=6: .*tree\.json' has 5 paths$"),
        ({"num_nodes": 4, "max_depth": 1}, r"^num_nodes=4: .* has 3 paths .*max_depth=1"),
        ({"num_nodes": 0}, r"^num_nodes=0"),
        ({"max_depth": 0}, r"^max_depth=0"),
        ({"estimate": "both"}, r"^estimate='both': expected one of joint, product"),
    ],
)
def test_bad_options_are_named(path: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Calibrated(path, **options)


@pytest.mark.parametrize("missing", [None, "", 3, "nothing.json", "."])
def test_a_file_that_is_missing_is_named(missing: Any) -> None:
    with pytest.raises(UserError, match=r"^path="):
        Calibrated(missing)


@pytest.mark.parametrize(
    "text",
    [
        '{"joint": {"pat',
        "[]",
        "3",
        "{}",
        '{"joint": {}}',
        '{"joint": {"paths": 3}}',
        '{"joint": {"paths": [3]}}',
        '{"joint": {"paths": [[]]}}',
        '{"joint": {"paths": [[0], [0]]}}',
        '{"joint": {"paths": [[0, 0], [0]]}}',
        '{"joint": {"paths": [[-1]]}}',
        '{"joint": {"paths": ["ab"]}}',
        "\udce9",
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, text: str) -> None:
    assert_damage_is_named(lambda path: Calibrated(path, num_nodes=1), tmp_path / "tree.json", text)


def test_paths_that_were_changed_are_refused(tmp_path: Path) -> None:
    """They make a tree, too, and none that was measured."""
    file = tmp_path / "tree.json"
    write_note(file, {"joint": {"paths": [[0], [1], [0, 0]]}})
    assert Calibrated(str(file), num_nodes=3).num_nodes == 3
    file.write_text(file.read_text().replace("1", "2", 1))
    with pytest.raises(UserError, match=r"^path=.*has changed since.*; calibrate anew"):
        Calibrated(str(file), num_nodes=3)

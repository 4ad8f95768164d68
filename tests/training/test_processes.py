"""Two processes with half the batch each train as one does."""

import json
from pathlib import Path

import pytest
from launching import launch


def test_two_processes_with_half_the_batch_give_the_losses_of_one(tiny, tmp_path: Path) -> None:
    one = launch(1, tmp_path / "one", tiny, 4)
    two = launch(2, tmp_path / "two", tiny, 2)
    assert len(one) == 4
    assert two == pytest.approx(one, rel=1e-5)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["num_heads"] == 4

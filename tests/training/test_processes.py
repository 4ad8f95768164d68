"""Two processes with half the batch each train as one does."""

import json
from pathlib import Path

import pytest

from tests.support.launching import launch
from tests.support.running import Tiny


def test_two_processes_with_half_the_batch_give_the_losses_of_one(
    tiny: Tiny, tmp_path: Path
) -> None:
    one = launch(1, tmp_path / "one", tiny, 4)
    two = launch(2, tmp_path / "two", tiny, 2)
    assert len(one) == 4
    assert two == pytest.approx(one, rel=1e-5)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["num_heads"] == 4


def test_one_process_distils_and_all_train_on_its_answers(tiny: Tiny, tmp_path: Path) -> None:
    """The draft's embeddings are tied: their gradient comes in two parts."""
    draft = ["train=draft_model", "loss=kl", "distill.max_new_tokens=8", "distill.prompt_tokens=4"]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = launch(1, one, tiny, 4, *draft, f"distill.path={one}.jsonl")
    shared = launch(2, two, tiny, 2, *draft, f"distill.path={two}.jsonl")
    assert len(shared) == 4
    assert shared == pytest.approx(alone, rel=1e-5)
    assert Path(f"{two}.jsonl").read_bytes() == Path(f"{one}.jsonl").read_bytes()

"""The benchmark of incremental decoding runs, and says what its numbers are."""

import json
import runpy
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoConfig

from specdec.lab.costs import multiplying
from tests.support.families import SMALL

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHORT = ("lengths=8,20", "repeats=2")


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine be measured in a moment."""
    monkeypatch.setattr(multiplying, "SIZES", {"cpu": 64})
    monkeypatch.setattr("specdec.lab.costs.copying.MEBIBYTES", {"cpu": 1})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what runs the script as if it was typed."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def typed(*options: str) -> None:
        monkeypatch.setattr(sys, "argv", ["incremental.py", *options])
        runpy.run_path(str(BENCHMARKS / "incremental.py"), run_name="__main__")

    return typed


@pytest.mark.parametrize("verifier", ["zoo:verifier", "random:tied", "random:shape"])
def test_it_runs_from_end_to_end(
    verifier: str, run: Callable[..., None], empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AutoConfig.for_model("qwen3", **SMALL, head_dim=8).save_pretrained("shape")
    run(f"verifier={verifier}", *SHORT, "output=new/measured.json")
    report = json.loads(Path("new/measured.json").read_text())
    phases = {(row["arm"], row["phase"], row["length"]): row for row in report["phases"]}
    assert len(phases) == 8
    assert report["machine"]["balance"] > 0
    for row in phases.values():
        assert row["seconds"] > 0
        assert row["floor_seconds"] > 0
        memory_bound = row["intensity"] <= report["machine"]["balance"]
        assert row["bound_by"] == ("memory" if memory_bound else "arithmetic")
    # What a cache saves, whatever the machine is doing beside.
    for length in (8, 20):
        kept, read = (phases[arm, "further token", length] for arm in ("cache", "none"))
        assert read["operations"] > length * kept["operations"] / 2
        assert read["intensity"] > kept["intensity"]
    shown = capsys.readouterr().out
    assert "FLOP/byte" in shown
    assert sorted(path.name for path in Path("new/plots").iterdir()) == [
        "measured.png",
        "measured.svg",
    ]
    drawn = Path("new/plots/measured.svg").read_text()
    assert "a further token, with a KV cache" in drawn
    assert "text (tokens)" in drawn


def test_phases_need_what_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a Llama whose weights can be added up: reading 600 tokens takes two chunks and a step."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script: Any = import_module("incremental")
    options = {**script.DEFAULTS, "verifier": "random:untied", "lengths": "600", "repeats": 1}
    bench = script.Bench(OmegaConf.create(options))
    for lm in bench.models.values():
        lm.prefill([0], [[0]])
    attention = 64 * 64 + 2 * 64 * 32 + 64 * 64
    layer = attention + 3 * 64 * 128
    head, cell = 512 * 64, 2 * 2 * 32  # numbers of a token's keys and values, two layers
    norms = 5 * 64
    pairs = 2 * 2 * 2 * 64  # two layers, keys and values, of four heads of 16
    moved, done = bench._needs_first("cache", 600)
    assert done == 2 * (600 * 2 * layer + head) + pairs * 600 * 601 // 2
    body = 4 * (2 * layer + norms + head)
    rows = 4 * 64 * (512 + 87 + 1)  # of embeddings, one for each token
    cells = 4 * cell * (512 + (512 + 87) + (599 + 1))
    assert moved == 3 * body + rows + cells
    moved, done = bench._needs_further("none", 600)
    assert done == 2 * 601 * (2 * layer + head) + pairs * 601 * 602 // 2
    assert moved == body + 4 * 64 * 512  # all rows of embeddings, and no cell
    moved, done = bench._needs_further("cache", 600)
    assert done == 2 * (2 * layer + head) + pairs * 601
    assert moved == body + 4 * 64 + 4 * cell * 601


def test_products_are_counted_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes half a second by a clock that is moved by hand: two operations of 64 ** 3 each."""

    class Ticking:
        def __init__(self, device: torch.device):
            self.seconds: dict[str, float] = {}

        def lap(self, name: str) -> None:
            self.seconds[name] = 0.5

    monkeypatch.setattr(multiplying, "Clock", Ticking)
    found = multiplying.multiplied_per_second(torch.device("cpu"), torch.bfloat16)
    assert found == 4 * 64**3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["lengths=8,x"], "lengths='8,x'"),
        (["lengths=1"], "lengths=1: expected lengths of at least 2"),
        (["repeats=0"], "repeats=0"),
        (["dtype=int3"], "dtype='int3'"),
        (["device=gpu"], "device='gpu'"),
        (["verifier=./nowhere"], "verifier='./nowhere'"),
        (["verifier=random:nowhere"], "verifier='random:nowhere'"),
        (["verifier=my_random:tied"], "verifier='my_random:tied'"),
        (["verifier=random:learned", "lengths=16"], "at most 16, where its positions end"),
    ],
)
@pytest.mark.usefixtures("empty_folder")
def test_mistakes_are_said_in_one_line(
    options: list[str], said: str, run: Callable[..., None]
) -> None:
    aliases = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
    AutoConfig.for_model("gpt2", **aliases).save_pretrained("learned")
    with pytest.raises(SystemExit) as left:
        run(*options)
    assert said in str(left.value)
    assert "\n" not in str(left.value)

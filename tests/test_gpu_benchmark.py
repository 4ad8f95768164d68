"""The script that a GPU is accepted by runs without one, and notices texts that differ."""

import json
import runpy
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from torch import Tensor

from specdec.runtime.proven import ProvenSteps
from tests.support.captured import Emulated

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PARTS = ("(a)", "(b)", "(c), (d)", "(e)", "(f)", "(g)")


class Unable:
    """Stands in for `steps_of` where nothing can be captured."""

    def __call__(self, name: str, model: Any, cache_word: str) -> ProvenSteps | None:
        return None if name == "eager" else ProvenSteps(self.refuse, model, name)

    def refuse(self, inputs: object, wanted: object) -> tuple[Tensor, ...]:
        raise RuntimeError("CUDA error: out of memory")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what runs the script as if it was typed."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def typed(*options: str) -> None:
        monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
        runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")

    return typed


@pytest.mark.thorough
@pytest.mark.whole
def test_it_runs_from_end_to_end(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "new" / "gpu.json"
    run("shapes=tiny", "device=cpu", f"output={written}")
    report = json.loads(written.read_text())
    rows = report["rows"]
    assert all(any(row["part"].startswith(part) for row in rows) for part in PARTS)
    assert all(row["value"] >= 0 for row in rows)
    assert {row["target"] for row in rows} == {None, 1e-4, 1.6, 1.25, 1.35, 0.9, 2}
    known = {row["measure"]: row["value"] for row in rows}
    by_accuracy = [known[f"recorded, acceptance {each}: tokens per step"] for each in (0.6, 0.9)]
    assert 1 < by_accuracy[0] < by_accuracy[1] < 5
    # Counted, not assumed: one to verify, and one to draft, where something is drafted.
    waits = [row["value"] for row in rows if row["part"] == "(g) waits"]
    assert waits[::3] == [1, 1]
    assert all(1.5 < each <= 2 for each in (*waits[1:3], *waits[4:]))
    shown = capsys.readouterr().out
    assert set(report["left_out"]) == {"cuda_graphs", "compiled"}
    assert "cuda_graphs is left out: runtime='cuda_graphs': a GPU replays them" in shown
    assert f"{len(rows)} numbers, " in shown


@pytest.fixture
def by_graphs(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Return the parts of the script, and a bench whose runtime `cuda_graphs` is the emulator's."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    parts: Any = import_module("gpu_parts")
    monkeypatch.setattr(parts, "require_runtime", lambda name, device: None)
    monkeypatch.setattr("specdec.lm.hf.steps_of", Emulated())
    options = {"shapes": "tiny", "device": "cpu", "dtype": "auto", "runtimes": "eager,cuda_graphs"}
    return parts, parts.Bench(OmegaConf.create(options))


@pytest.mark.thorough
@pytest.mark.whole
def test_texts_are_the_same_by_graphs(by_graphs: tuple[Any, Any]) -> None:
    _, bench = by_graphs
    assert [row.is_met for row in bench.equal_texts()] == [True, True]


@pytest.mark.thorough
@pytest.mark.whole
def test_texts_of_another_model_differ(
    by_graphs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, bench = by_graphs
    pair, turns = parts.small_pair(bench.device), iter([False, False, True])
    monkeypatch.setattr(parts, "small_pair", lambda device: pair[::-1] if next(turns) else pair)
    assert [row.is_met for row in bench.equal_texts()] == [True, False]


@pytest.mark.whole
def test_a_runtime_that_is_refused_is_left_out(
    by_graphs: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, bench = by_graphs
    monkeypatch.setattr("specdec.lm.hf.steps_of", Unable())
    model = parts.small_pair(bench.device)[0]
    rows = list(bench.steps("tiny", model, bandwidth=1e9, target=1.25))
    assert bench.runtimes == ["eager"]
    assert bench.quick == "eager"
    assert {row.measure.rpartition(", ")[2] for row in rows[1:]} == {"eager"}
    reason = "llama cannot be run this way (CUDA error: out of memory); runtime=eager runs it"
    expected = f"cuda_graphs is left out: runtime='cuda_graphs': {reason}\n"
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["shapes=huge"], "shapes='huge'"),
        (["shapes=tiny", "device=cpu", "runtimes=eager,fast"], "runtimes='eager,fast'"),
        (["shapes=tiny", "device=cpu", "runtimes=cuda_graphs"], "one that this device has"),
        (["device=gpu"], "device='gpu'"),
    ],
)
def test_mistakes_are_said_in_one_line(
    options: list[str], said: str, run: Callable[..., None]
) -> None:
    with pytest.raises(SystemExit) as left:
        run(*options)
    assert said in str(left.value)
    assert "\n" not in str(left.value)

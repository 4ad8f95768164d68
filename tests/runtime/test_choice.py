"""Runtimes and types are asked for by name, and chosen by what is to be done, and where."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from specdec.core.errors import UserError
from specdec.lm.devices import computes_in_bfloat16, settled_dtype
from specdec.runtime import preparation
from specdec.runtime.choice import (
    CACHE_DIR,
    keep_programs,
    next_best,
    require_runtime,
    suited,
)
from tests.support.families import tiny_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_only_what_there_is() -> None:
    for name in ("eager", "compiled", "auto"):
        require_runtime(name, CPU)
    for name in ("fast", None, 3):
        expected = r"runtime=.*expected one of eager, compiled, cuda_graphs, auto"
        with pytest.raises(UserError, match=expected):
            require_runtime(name, CPU)


def test_graphs_are_a_gpus() -> None:
    require_runtime("cuda_graphs", GPU)
    with pytest.raises(UserError) as refused:
        require_runtime("cuda_graphs", CPU)
    assert str(refused.value) == (
        "runtime='cuda_graphs': a GPU replays them, and device='cpu' is none;"
        " runtime=compiled runs there"
    )


def test_one_step_down_at_a_time() -> None:
    names = ("compiled", "cuda_graphs")
    assert [next_best(name, GPU) for name in names] == ["cuda_graphs", "eager"]
    assert [next_best(name, CPU) for name in names] == ["eager", "eager"]


def test_without_a_compiler_there_is_only_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="no C\\+\\+ compiler is installed here"):
        require_runtime("compiled", CPU)
    assert suited(tiny_model("llama"), 10**12)[0] == "eager"


@pytest.mark.parametrize("before", [None, default_cache_dir()], ids=["unset", "by torch"])
def test_programs_are_kept_for_the_next_start_of_the_machine(
    before: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An import of the compiler sets the variable, to a folder of temporary files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(CACHE_DIR, before or "")
    if before is None:
        monkeypatch.delenv(CACHE_DIR)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    keep_programs()
    first = os.environ[CACHE_DIR]
    assert Path(first).parent == tmp_path / "specdec" / "compiled"
    assert first.endswith(f"7_threads_{torch.backends.cpu.get_cpu_capability()}")
    # Another machine, whose instructions those programs may not be.
    monkeypatch.setenv(CACHE_DIR, default_cache_dir())
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "OTHER")
    keep_programs()
    assert os.environ[CACHE_DIR].endswith("7_threads_OTHER")


def test_a_folder_that_the_user_named_is_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(CACHE_DIR, str(tmp_path))
    keep_programs()
    assert os.environ[CACHE_DIR] == str(tmp_path)


def test_long_work_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    model = tiny_model("llama")
    assert suited(model, 100)[0] == "eager"
    name, why = suited(model, 10**7)
    assert name == "compiled"
    assert "s of steps, and" in why


def test_on_a_gpu_graphs_cost_seconds_and_programs_minutes() -> None:
    tiny = tiny_model("llama")
    there: Any = SimpleNamespace(device=GPU, config=tiny.config, parameters=tiny.parameters)
    assert [suited(there, num)[0] for num in (100, 10**4, 10**6)] == [
        *("eager", "cuda_graphs", "compiled"),
    ]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"avx512_bf16": False, "amx_bf16": False, "avx2": True}, False),
        ({"avx512_bf16": True, "avx2": True}, True),
        ({"amx_bf16": True}, True),
        ({"architecture": "aarch64", "bf16": True}, True),
        ({"architecture": "bf16"}, False),
    ],
)
def test_the_hardware_says_what_it_computes_in(
    said: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: said)
    assert computes_in_bfloat16(CPU) is expected
    assert settled_dtype("auto", CPU) == ("bfloat16" if expected else "float32")
    assert settled_dtype("float16", CPU) == "float16"


def test_the_clock_stands_still_while_programs_are_prepared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: time[0])
    before, spent = preparation.now(), preparation.prepared_seconds()
    time[0] += 1
    with preparation.preparing():
        time[0] += 20
        with preparation.preparing():  # one within another is booked once
            time[0] += 300
    time[0] += 2
    assert preparation.now() - before == pytest.approx(3)
    assert preparation.prepared_seconds() - spent == pytest.approx(320)


@pytest.mark.parametrize("expected", [True, False])
def test_older_versions_are_asked_otherwise(
    expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: expected)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert computes_in_bfloat16(CPU) is expected

"""The peak is that of the run, not of what the process did before."""

from pathlib import Path

import pytest
import torch

from specdec.results.peak_memory import CLEAR, PeakMemory

MIB = 1 << 20
CPU = torch.device("cpu")


@pytest.mark.skipif(not CLEAR.exists(), reason="only Linux can forget a peak")
def test_a_peak_is_measured_and_forgotten() -> None:
    before = PeakMemory(CPU).num_bytes
    held = bytearray(b"x") * (200 * MIB)
    during = PeakMemory(CPU).num_bytes
    assert 190 * MIB < during - before < 260 * MIB
    del held
    assert PeakMemory(CPU).num_bytes < during - 150 * MIB


def test_without_proc_the_peak_of_the_process_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("specdec.results.peak_memory.STATUS", tmp_path / "missing")
    monkeypatch.setattr("specdec.results.peak_memory.CLEAR", tmp_path / "no" / "folder")
    assert PeakMemory(CPU).num_bytes > 50 * MIB

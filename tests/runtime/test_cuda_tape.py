"""What CUDA is asked for in a capture, and in which order; there is no GPU that would do it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from specdec.runtime.cuda_tape import WARM_UPS, CudaGraphs


class FakeCuda:
    """Stands in for the functions of `torch.cuda`; notes what happens, and on which stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.happened: list[str] = []
        self.current = FakeStream("main", self)
        self.device_of: list[torch.device] = []
        for name in ("stream", "device", "graph", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("side", self, device))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(self))

    def current_stream(self) -> "FakeStream":
        return self.current

    @contextmanager
    def stream(self, stream: "FakeStream") -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.device_of.append(device)
        yield

    @contextmanager
    def graph(
        self, graph: Any, pool: Any, stream: "FakeStream", capture_error_mode: str
    ) -> Iterator[None]:
        """As torch's own, this one leaves the stream as it is when a capture fails."""
        before, self.current = self.current, stream
        self.happened.append(f"capture into {pool}, {capture_error_mode}")
        yield
        self.happened.append("captured")
        self.current = before


class FakeStream:
    """A stream with a name."""

    def __init__(self, name: str, cuda: FakeCuda, device: torch.device | None = None):
        self.name, self._cuda, self.device = name, cuda, device

    def wait_stream(self, other: "FakeStream") -> None:
        self._cuda.happened.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    """A graph that can be launched."""

    def __init__(self, cuda: FakeCuda):
        self._cuda = cuda

    def replay(self) -> None:
        self._cuda.happened.append(f"replay on {self._cuda.current.name}")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def test_a_program_is_warm_before_it_is_captured_on_the_same_stream(cuda: FakeCuda) -> None:
    def program() -> list[torch.Tensor]:
        cuda.happened.append(f"run on {cuda.current.name}")
        return []

    graphs = CudaGraphs(torch.device("cuda:1"))
    tape = graphs.new_tape()
    tape.capture(program)
    tape.replay()
    assert cuda.happened == [
        "side waits for main",
        *["run on side"] * WARM_UPS,
        "main waits for side",
        *("capture into (0, 7), thread_local", "run on side", "captured"),
        "replay on main",
    ]
    assert cuda.device_of == [torch.device("cuda:1")]


def test_a_capture_that_fails_leaves_the_stream_of_before(cuda: FakeCuda) -> None:
    runs = iter(range(WARM_UPS))

    def program() -> list[torch.Tensor]:
        if next(runs, None) is None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return []

    with pytest.raises(RuntimeError, match="not permitted"):
        CudaGraphs(torch.device("cuda")).new_tape().capture(program)
    assert cuda.current.name == "main"

"""CUDA graphs behind the interface that `GraphSteps` captures by.

Not run where it was written, which had no GPU: `python benchmarks/gpu.py` is the way to try it on
one. What surrounds it is tested on the CPU, with an emulator in its place.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UPS = 2  # so that libraries have their plans and workspaces before, on the same stream


class CudaGraphs:
    """What the graphs of one model share: a stream to capture on, and a memory pool.

    In the pool lie what steps make on their way, and results; one graph may write where another
    has, so results are copied before the next replay (`specdec.runtime.graphs.Graph`).

    Args:
        device: whose graphs they are.
    """

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def new_tape(self) -> "CudaTape":
        """Return an empty graph."""
        return CudaTape(self)


class CudaTape:
    """One CUDA graph."""

    def __init__(self, shared: CudaGraphs):
        self._shared = shared
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, program: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """Capture a program, which is not run by that, but before, to warm up."""
        stream = self._shared.stream
        with torch.cuda.device(stream.device):
            before = torch.cuda.current_stream()
            stream.wait_stream(before)
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    program()
            before.wait_stream(stream)
            with torch.cuda.stream(before):  # which a capture that fails would not restore
                return self._captured(program)

    def _captured(self, program: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        # Threads of other people (progress bars, data loaders) may allocate meanwhile.
        with torch.cuda.graph(
            self._graph,
            pool=self._shared.pool,
            stream=self._shared.stream,
            capture_error_mode="thread_local",
        ):
            return program()

    def replay(self) -> None:
        """Launch the graph on the current stream."""
        self._graph.replay()

"""Numbers are sent to a device from pinned memory, which is how nobody waits for it."""

from typing import Any

import torch

from specdec.core.on_device import on_device, sent


class Sent:
    """Stands in for a tensor; notes what is done to it."""

    def __init__(self) -> None:
        self.happened: list[object] = []

    def pin_memory(self) -> "Sent":
        self.happened.append("pinned")
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> "Sent":
        self.happened.append((device.type, non_blocking))
        return self


def test_copies_to_a_gpu_stand_in_line() -> None:
    tensor: Any = Sent()
    sent(tensor, torch.device("cuda", 1))
    assert tensor.happened == ["pinned", ("cuda", True)]


def test_nothing_is_copied_on_the_processor() -> None:
    here = torch.arange(3)
    assert sent(here, torch.device("cpu")) is here
    found = on_device([[1, 2], [3, 4]], torch.device("cpu"), torch.float64)
    assert found.dtype is torch.float64
    assert found.tolist() == [[1, 2], [3, 4]]
    assert on_device([1, 2], torch.device("cpu")).dtype is torch.int64

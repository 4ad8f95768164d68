"""How many bytes a device moves in a second, as far as copying shows it."""

import torch

from specdec.decoding.decoder import Clock

# Larger than the caches of any processor at hand.
MEBIBYTES, MEBIBYTES_ELSEWHERE = {"cpu": 256}, 1024
REPEATS = 5


def copied_bytes_per_second(device: torch.device) -> float:
    """Copy a large tensor and take the best of five; read and written bytes both count.

    256 MiB on a CPU, with the threads that torch has; 1 GiB elsewhere.
    """
    number = MEBIBYTES.get(device.type, MEBIBYTES_ELSEWHERE) << 20
    source = torch.ones(number, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    target.copy_(source)
    seconds: list[float] = []
    for _ in range(REPEATS):
        clock = Clock(device)
        target.copy_(source)
        clock.lap("copy")
        seconds.append(clock.seconds["copy"])
    return 2 * number / min(seconds)

"""How many operations a device does in a second, as far as a product of matrices shows it."""

import torch

from specdec.decoding.decoder import Clock

# Rows and columns: large enough that arithmetic is what takes the time.
SIZES, SIZE_ELSEWHERE = {"cpu": 2048}, 8192
REPEATS = 5


def multiplied_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply two large matrices and take the best of five; a product and a sum are two.

    Of 2048 rows on a CPU, with the threads that torch has; of 8192 elsewhere.
    """
    size = SIZES.get(device.type, SIZE_ELSEWHERE)
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    target = matrix @ matrix
    seconds: list[float] = []
    for _ in range(REPEATS):
        clock = Clock(device)
        torch.matmul(matrix, matrix, out=target)
        clock.lap("product")
        seconds.append(clock.seconds["product"])
    return 2 * size**3 / min(seconds)

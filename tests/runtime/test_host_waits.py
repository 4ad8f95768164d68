"""What makes the host wait is found before a capture, and named with its line."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from specdec.runtime.host_waits import CaptureError, noting_waits, refusing_waits
from tests.support.tape import TapeGraph

X = torch.arange(4)
WAITS: Sequence[Callable[[], Any]] = (
    lambda: [X + int(X[1])],
    lambda: [X[X > 1]],
    lambda: [X.clone().index_put_((X > 1,), X[0])],
    lambda: [X.nonzero()],
    lambda: [X.masked_select(X > 1)],
    lambda: [X] if bool((X > 0).all()) else [],
    lambda: [X] if torch.equal(X, X + 1) else [],
    lambda: [X.unique()],
    lambda: [X + X.tolist()[1]],
    lambda: [X + X[1].item()],
    lambda: [X.cpu()],
    lambda: [X.numpy()],
    lambda: [torch.tensor([1, 2], device="cpu")],
    lambda: [X[[1, 2]]],
    lambda: [X.view(2, 2)[:, [1, 0]]],
    lambda: [X.to("meta")],  # a device that every machine has
    lambda: [torch.empty(4, device="meta").copy_(X)],
)
NONE: Sequence[Callable[[], Any]] = (
    lambda: [X[X], X[:, None] + X, torch.where(X > 1, X, 0)],
    lambda: [torch.arange(3, device="cpu"), X.to(torch.float32), X.clone().copy_(X)],
    lambda: [torch.tensor(0.5) * X, X.new_full((2,), 3), X.topk(2)],
)


@pytest.mark.parametrize("number", range(len(WAITS)))
def test_what_waits_is_named(number: int) -> None:
    with (
        pytest.raises(CaptureError, match=r"test_host_waits\.py:\d+: the host would have to wait"),
        refusing_waits(),
    ):
        WAITS[number]()


@pytest.mark.parametrize("number", range(len(NONE)))
def test_what_does_not_wait_is_let_through(number: int) -> None:
    with refusing_waits():
        NONE[number]()


def test_a_tape_refuses_them_too() -> None:
    with pytest.raises(CaptureError, match=r"test_host_waits\.py:\d+"):
        TapeGraph().capture(WAITS[0])


def test_waits_are_counted() -> None:
    found: list[str] = []
    with noting_waits(found.append):
        total = int(X.sum()) + len(X.tolist())
    assert total == 10, "what is noted happens all the same"
    assert [each.partition(" at ")[0] for each in found] == ["aten._local_scalar_dense", "tolist"]

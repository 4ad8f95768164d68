"""Products written otherwise: the same numbers, where the weight is given and rows are few."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from specdec.runtime.kernels.operators import have_kernels, linear_operator
from specdec.runtime.thin_products import ThinProducts, addmm, mm


@pytest.fixture(autouse=True)
def kernels() -> None:
    if not have_kernels(torch.float32, torch.device("cpu")):
        pytest.skip("kernels take a C++ compiler")


def product(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    turned = weight.permute(1, 0)
    return torch.mm(x, turned) * 2, torch.addmm(bias, x, turned)


def rewritten(function: Any, *inputs: Tensor) -> Any:
    """Trace a function with sizes that are not known, and let the pass have its graph."""
    traced = make_fx(function, tracing_mode="symbolic")(*inputs)
    ThinProducts()(traced.graph)
    traced.recompile()
    return traced


def targets(traced: Any) -> list[Any]:
    return [node.target for node in traced.graph.nodes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_rows_are_left_to_a_kernel(dtype: torch.dtype) -> None:
    sizes = (5, 8), (6, 8), (6,)
    x, weight, bias = (torch.randn(size).to(dtype) for size in sizes)
    traced = rewritten(product, x, weight, bias)
    assert targets(traced).count(linear_operator()) == 2
    assert {mm, addmm}.isdisjoint(targets(traced))
    traced.graph.lint()
    for rows in (2, 5, 17):
        x = torch.randn(rows, 8).to(dtype)
        for found, expected in zip(traced(x, weight, bias), product(x, weight, bias), strict=True):
            assert torch.allclose(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_row_is_sums(dtype: torch.dtype) -> None:
    sizes = (1, 8), (6, 8), (6,)
    x, weight, bias = (torch.randn(size).to(dtype) for size in sizes)
    traced = rewritten(product, x, weight, bias)
    assert {mm, addmm, linear_operator()}.isdisjoint(targets(traced))
    traced.graph.lint()
    for found, expected in zip(traced(x, weight, bias), product(x, weight, bias), strict=True):
        assert torch.allclose(found, expected, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("size", [(6,), (1,), (1, 6)])
def test_what_is_added_is_added(rows: int, size: tuple[int, ...]) -> None:
    """Also where it is no layer's bias."""
    inputs = torch.randn(rows, 8), torch.randn(6, 8), torch.randn(size)
    traced = rewritten(product, *inputs)
    for found, expected in zip(traced(*inputs), product(*inputs), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_what_is_no_weight_or_of_another_type_stays() -> None:
    def both_computed(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return (torch.mm(x, (weight + 1).permute(1, 0)),)

    inputs = (torch.randn(5, 8), torch.randn(6, 8), torch.randn(6))
    assert targets(rewritten(both_computed, *inputs)).count(mm) == 1
    double = rewritten(product, *(each.double() for each in inputs))
    assert targets(double).count(mm) == targets(double).count(addmm) == 1


def test_compilers_caches_hear_of_changes() -> None:
    assert ThinProducts().uuid() == ThinProducts().uuid() != b""

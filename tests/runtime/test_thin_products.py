"""Products written otherwise: the same numbers, where the weight is given and rows are few."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from specdec.runtime import thin_products
from specdec.runtime.thin_products import ThinProducts, addmm, mm


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    turned = weight.permute(1, 0)
    return torch.mm(x, turned) * 2, torch.addmm(bias, x, turned)


def rewritten(function: Any, *inputs: Tensor, turned: bool = True) -> Any:
    """Trace a function with sizes that are not known, and let the pass have its graph."""
    traced = make_fx(function, tracing_mode="symbolic")(*inputs)
    ThinProducts(turned)(traced.graph)
    traced.recompile()
    return traced


def lefts(traced: Any) -> list[str]:
    """Return what stands on the left of each product."""
    return [node.args[0].op for node in traced.graph.nodes if node.target is mm]


def test_products_are_the_same_for_all_numbers_of_rows() -> None:
    x, weight, bias = torch.randn(5, 8), torch.randn(6, 8), torch.randn(6)
    traced = rewritten(linear, x, weight, bias)
    assert lefts(traced) == ["placeholder"] * 2, "the weights"
    traced.graph.lint()
    for rows in (2, 5, 17):
        x = torch.randn(rows, 8)
        for found, expected in zip(traced(x, weight, bias), linear(x, weight, bias), strict=True):
            assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("turned", [True, False])
def test_one_row_is_no_product_of_matrices(turned: bool) -> None:
    x, weight, bias = torch.randn(1, 8), torch.randn(6, 8), torch.randn(6)
    traced = rewritten(linear, x, weight, bias, turned=turned)
    assert {node.target for node in traced.graph.nodes}.isdisjoint({mm, addmm})
    traced.graph.lint()
    for found, expected in zip(traced(x, weight, bias), linear(x, weight, bias), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_several_rows_stay_where_it_does_not_pay() -> None:
    inputs = torch.randn(5, 8), torch.randn(6, 8), torch.randn(6)
    assert lefts(rewritten(linear, *inputs, turned=False)) != ["placeholder"] * 2
    assert ThinProducts(True).uuid() != ThinProducts(False).uuid(), "for compilers' caches"


def test_what_is_no_weight_or_of_another_type_stays() -> None:
    def both_computed(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return (torch.mm(x, (weight + 1).permute(1, 0)),)

    sizes = (torch.randn(5, 8), torch.randn(6, 8), torch.randn(6))
    assert lefts(rewritten(both_computed, *sizes)) == ["placeholder"], "x"
    half = rewritten(linear, *(each.to(torch.bfloat16) for each in sizes))
    assert [node.target for node in half.graph.nodes].count(mm) == 1, "and one addmm"


@pytest.mark.parametrize(("left", "expected"), [(0.5, True), (0.95, False), (2.0, False)])
def test_a_trial_on_the_machine_decides(
    left: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it gains less than a tenth, products stay as they are."""
    time, weight_first = [0.0], thin_products.WEIGHT[0]

    def timed(one: Tensor, other: Tensor) -> None:
        time[0] += left if len(one) == weight_first else 1.0

    monkeypatch.setattr(torch, "mm", timed)
    monkeypatch.setattr("time.perf_counter", lambda: time[0])
    assert thin_products.pays.__wrapped__() is expected

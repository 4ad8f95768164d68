"""Products of a weight and a few tokens, written otherwise: for processors.

A layer's x W^T, with one to some dozens of rows in x, is what speculative decoding is made of, and
what libraries of linear algebra do least well: a call of theirs takes longer than reading a small
model's weight, and MKL was seen to read large ones at a third of the memory's bandwidth.

* One row: sums of products, which the compiler splits among threads itself, and fuses with what
  stands around them.
* Several rows: a kernel of our own, where it could be built.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

from specdec.runtime.kernels.build import OPERATORS
from specdec.runtime.kernels.operators import TYPES, linear_operator

mm: Any = torch.ops.aten.mm.default
addmm: Any = torch.ops.aten.addmm.default
add: Any = torch.ops.aten.add.Tensor
permute: Any = torch.ops.aten.permute.default
times: Any = torch.ops.aten.mul.Tensor
sum_of: Any = torch.ops.aten.sum.dim_IntList
unsqueeze: Any = torch.ops.aten.unsqueeze.default


class ThinProducts(CustomGraphPass):
    """Rewrite products with weights in a compiled program; whoever uses it has the kernels."""

    def __call__(self, graph: Graph) -> None:
        """Rewrite x W^T, and b + x W^T."""
        for node in list(graph.nodes):
            if node.target is mm:
                self._rewrite(graph, node, *node.args)
            elif node.target is addmm and not node.kwargs:
                bias, left, right = node.args
                self._rewrite(graph, node, left, right, bias)

    def _rewrite(
        self, graph: Graph, node: Node, left: Node, right: Node, bias: Node | None = None
    ) -> None:
        weight = _transposed(right)
        if weight is None or not _is_ours(left):
            return
        with graph.inserting_before(node):
            inside = bias is not None and _is_one_each(bias, weight)
            if _has_several_rows(left):
                found = _call(graph, linear_operator(), left, weight, bias if inside else None)
            else:
                found, inside = _sums(graph, weight, left), False
            if bias is not None and not inside:
                found = _call(graph, add, found, bias)
        node.replace_all_uses_with(found)
        graph.erase_node(node)

    def uuid(self) -> bytes:
        """Tell compilers' caches when this file, or how operators are called, has changed."""
        return get_hash_for_files((__file__, str(OPERATORS)))


def _sums(graph: Graph, weight: Node, row: Node) -> Node:  # [N, K], [1, K] -> [1, N]
    sums = _call(graph, sum_of, _call(graph, times, weight, row), [1])
    return _call(graph, unsqueeze, sums, 0)


def _is_one_each(bias: Node, weight: Node) -> bool:
    """Whether there is a number for each output, as a layer has it."""
    return bias.meta["val"].shape == weight.meta["val"].shape[:1]


def _transposed(node: Node) -> Node | None:
    """Return the input of the program that a matrix is the transpose of; None: it is none."""
    if node.target is not permute or node.args[1] != [1, 0]:
        return None
    weight = node.args[0]
    return weight if isinstance(weight, Node) and weight.op == "placeholder" else None


def _is_ours(node: Node) -> bool:
    value = node.meta["val"]
    return value.dtype in TYPES and value.device.type == "cpu"


def _has_several_rows(node: Node) -> bool:
    """Whether there is more than one; how many is known when the program runs."""
    rows = node.meta["val"].shape[0]
    return not isinstance(rows, int) or rows > 1


def _call(graph: Graph, target: Callable[..., Any], *args: Any) -> Node:
    node = graph.call_function(target, args)
    values = [each.meta["val"] if isinstance(each, Node) else each for each in args]
    node.meta["val"] = target(*values)
    return node

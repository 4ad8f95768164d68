"""Products of a weight and a few tokens, written otherwise: for float32 on processors.

A layer's x W^T, with one to some thirty rows in x, is what speculative decoding is made of, and
what libraries of linear algebra split among threads and caches least well: MKL was seen to read
such weights at a third of the memory's bandwidth.

* One row: sums of products, which the compiler splits among threads itself, and fuses with what
  stands around them. Twice as fast.
* Several rows: W x^T, the same numbers in another order. Twice as fast where a trial says so.
"""

import statistics
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

ROWS, WEIGHT, NUM_WEIGHTS = 5, (1536, 512), 8  # of a trial: more than fits the caches of a core
WORTH = 0.9  # of the other way's seconds

mm: Any = torch.ops.aten.mm.default
addmm: Any = torch.ops.aten.addmm.default
add: Any = torch.ops.aten.add.Tensor
permute: Any = torch.ops.aten.permute.default
times: Any = torch.ops.aten.mul.Tensor
sum_of: Any = torch.ops.aten.sum.dim_IntList
unsqueeze: Any = torch.ops.aten.unsqueeze.default


class ThinProducts(CustomGraphPass):
    """Rewrite products with weights in a compiled program.

    Args:
        turned: whether to put the weight on the left of several rows.
    """

    def __init__(self, turned: bool):
        self._turned = turned

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
            if not _has_several_rows(left):
                found = _sums(graph, weight, left)
            elif self._turned:
                found = _weight_first(graph, weight, left)
            else:
                return
            found = found if bias is None else _call(graph, add, found, bias)
        node.replace_all_uses_with(found)
        graph.erase_node(node)

    def uuid(self) -> bytes:
        """Tell compilers' caches when this file has changed."""
        return get_hash_for_files((__file__,), str(self._turned))


@lru_cache
def pays() -> bool:
    """Whether the weight belongs on the left on this machine: tried, in a tenth of a second."""
    x = torch.ones(ROWS, WEIGHT[1])
    weights = [torch.ones(WEIGHT) for _ in range(NUM_WEIGHTS)]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for left in (False, True) * 9:
        start = time.perf_counter()
        for weight in weights:
            torch.mm(weight, x.t()) if left else torch.mm(x, weight.t())
        seconds[left].append(time.perf_counter() - start)
    return statistics.median(seconds[True]) < WORTH * statistics.median(seconds[False])


def _sums(graph: Graph, weight: Node, row: Node) -> Node:  # [N, K], [1, K] -> [1, N]
    sums = _call(graph, sum_of, _call(graph, times, weight, row), [1])
    return _call(graph, unsqueeze, sums, 0)


def _weight_first(graph: Graph, weight: Node, rows: Node) -> Node:  # [N, K], [n, K] -> [n, N]
    product = _call(graph, mm, weight, _call(graph, permute, rows, [1, 0]))
    return _call(graph, permute, product, [1, 0])


def _transposed(node: Node) -> Node | None:
    """Return the input of the program that a matrix is the transpose of; None: it is none."""
    if node.target is not permute or node.args[1] != [1, 0]:
        return None
    weight = node.args[0]
    return weight if isinstance(weight, Node) and weight.op == "placeholder" else None


def _is_ours(node: Node) -> bool:
    value = node.meta["val"]
    return value.dtype == torch.float32 and value.device.type == "cpu"


def _has_several_rows(node: Node) -> bool:
    """Whether there is more than one; how many is known when the program runs."""
    rows = node.meta["val"].shape[0]
    return not isinstance(rows, int) or rows > 1


def _call(graph: Graph, target: Callable[..., Any], *args: Any) -> Node:
    node = graph.call_function(target, args)
    values = [each.meta["val"] if isinstance(each, Node) else each for each in args]
    node.meta["val"] = target(*values)
    return node

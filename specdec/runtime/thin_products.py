"""Products of a weight and a few tokens, with the weight on the left: for float32 on processors.

A layer's x W^T, with two to some thirty rows in x, is what speculative decoding is made of, and
what libraries of linear algebra split among threads and caches least well: MKL was seen to read
such weights at a third of the memory's bandwidth. W x^T are the same numbers, twice as fast there.
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


class WeightOnTheLeft(CustomGraphPass):
    """Rewrite products with weights in a compiled program."""

    def __call__(self, graph: Graph) -> None:
        """Rewrite x W^T as (W x^T)^T, and b + x W^T likewise."""
        for node in list(graph.nodes):
            if node.target is mm:
                _rewrite(graph, node, *node.args)
            elif node.target is addmm and not node.kwargs:
                bias, left, right = node.args
                _rewrite(graph, node, left, right, bias)

    def uuid(self) -> bytes:
        """Tell compilers' caches when this file has changed."""
        return get_hash_for_files((__file__,))


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


def _rewrite(graph: Graph, node: Node, left: Node, right: Node, bias: Node | None = None) -> None:
    weight = _transposed(right)
    if weight is None or not _is_thin(left):
        return
    with graph.inserting_before(node):
        turned = _call(graph, permute, left, [1, 0])
        found = _call(graph, permute, _call(graph, mm, weight, turned), [1, 0])
        found = found if bias is None else _call(graph, add, found, bias)
    node.replace_all_uses_with(found)
    graph.erase_node(node)


def _transposed(node: Node) -> Node | None:
    """Return the input of the program that a matrix is the transpose of; None: it is none."""
    if node.target is not permute or node.args[1] != [1, 0]:
        return None
    weight = node.args[0]
    return weight if isinstance(weight, Node) and weight.op == "placeholder" else None


def _is_thin(node: Node) -> bool:
    """Whether a matrix has several rows in float32; how many is known when the program runs."""
    value = node.meta["val"]
    several = not isinstance(value.shape[0], int) or value.shape[0] > 1
    return value.dtype == torch.float32 and several and value.device.type == "cpu"


def _call(graph: Graph, target: Callable[..., Any], *args: Any) -> Node:
    node = graph.call_function(target, args)
    values = [each.meta["val"] if isinstance(each, Node) else each for each in args]
    node.meta["val"] = target(*values)
    return node

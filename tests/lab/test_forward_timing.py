"""Forwards over tokens and context: what is timed, what it must move, and how it grows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.core.errors import UserError
from specdec.core.protocols import Forward
from specdec.lab.costs import copying
from specdec.lab.costs.candidates import Read, along, count_experts, of_text
from specdec.lab.costs.forward_grid import ForwardGrid, contexts_within
from specdec.lab.costs.forward_timing import WARM_UPS, forwards_of, time_forwards
from specdec.lab.costs.growing import (
    by_batch,
    by_context,
    by_tokens,
    exponents,
    growth_said,
    require_comparable,
)
from specdec.lab.costs.shown import experts_said
from specdec.lm.hf import HFCausalLM
from specdec.lm.routing import Routing
from specdec.lm.traffic import step_bytes, weight_bytes
from specdec.replaying.forwards import Forwards, Shape, TimedForward
from specdec.report.plots.growth import Axis, Series, growth
from tests.support.families import plain_logits, random_ids, tiny_model
from tests.support.ragged import path_to

GRID = ForwardGrid(tokens=[1, 2, 4], contexts=[8, 16], batch=2, repeats=3)
SHAPES = [
    Shape(branches, number, context)
    for context in (8, 16)
    for branches, number in ((False, 1), (False, 2), (False, 4), (True, 4))
]
# A layer of the tiny Llama: H = 32, 4 query heads and 2 key heads of 8, 48 inside; two norms.
LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48 + 2 * 32
HEAD = 61 * 32
CELL = 2 * 2 * 8 * 4  # bytes of a layer's key and value


class Ticking(HFCausalLM):
    """A model whose forwards take a second for each new cell and a hundredth for each cached one.

    The engine's clock is moved by hand.
    """

    time = 0.0
    num_forwards = 0

    def forward(self, rows: Sequence[int], token_ids: Tensor, *args: Any, **kwargs: Any) -> Forward:
        assert len(rows) == len(token_ids) == GRID.batch
        lengths = {self.length(row) for row in rows}
        Ticking.time += token_ids.shape[1] + 0.01 * lengths.pop()
        Ticking.num_forwards += 1
        assert not lengths
        return super().forward(rows, token_ids, *args, **kwargs)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Ticking:
    monkeypatch.setattr("specdec.lab.costs.forward_timing.causal_lm", Ticking)
    monkeypatch.setattr("specdec.decoding.decoder.now", lambda: Ticking.time)
    Ticking.time, Ticking.num_forwards = 0.0, 0
    return Ticking(tiny_model("llama"))


def test_every_shape_is_timed_behind_its_own_context(ticking: Ticking) -> None:
    assert GRID.shapes == SHAPES
    samples = time_forwards(ticking, GRID)
    assert set(samples) == set(SHAPES)
    for shape, seconds in samples.items():
        expected = shape.num_tokens + 0.01 * shape.context
        assert list(seconds) == pytest.approx([expected] * GRID.repeats)
    assert Ticking.num_forwards == len(SHAPES) * (WARM_UPS + GRID.repeats)


def test_medians_and_bytes_make_the_points(ticking: Ticking) -> None:
    samples = {shape: [1.0, 9.0, 2.0] for shape in SHAPES}
    found = forwards_of(ticking, GRID, samples, bytes_per_second=1e6)
    assert [point.shape for point in found.points] == SHAPES
    assert {point.seconds for point in found.points} == {2.0}
    last = found.points[-1]
    cells = 2 * 2 * (16 + 4) * CELL  # two rows, two layers
    assert last.num_bytes == 4 * (2 * LAYER + 32 + HEAD) + 4 * 8 * 32 + cells
    assert found.ratio(last) == pytest.approx(2e6 / last.num_bytes)
    assert found.chain.at(1, 8) == 1.0, "seconds are one request's share of a batch of two"


def test_weights_are_counted_once_and_of_tables_the_rows() -> None:
    dense = 4 * (2 * LAYER + 32 + HEAD)
    assert weight_bytes(tiny_model("llama"), 3) == dense + 4 * 3 * 32
    assert weight_bytes(tiny_model("llama"), 1000) == dense + 4 * HEAD, "no more than there are"
    tied = tiny_model("llama", tie_word_embeddings=True)
    assert weight_bytes(tied, 3) == dense, "the rows lie in the head, which is read anyway"
    halves: Any = tiny_model("llama").bfloat16()
    assert weight_bytes(halves, 3) == (dense + 4 * 3 * 32) // 2


@pytest.mark.parametrize(
    "family",
    ["mixtral", "olmoe", "gpt_oss", "deepseek_v3"],  # the last with shared experts
)
def test_of_experts_count_those_that_are_expected_or_were_counted(family: str) -> None:
    model = tiny_model(family)
    parameters = dict(model.named_parameters())
    routed = sum(each.numel() for name, each in parameters.items() if ".experts." in name)
    rest = sum(each.numel() for each in parameters.values()) - HEAD - routed
    assert routed > 0

    def expected(number: int, share: float) -> float:
        return 4 * (rest + number * 32 + routed * share)  # rows of the embeddings are looked up

    for number in (1, 2, 5):  # two of four, whatever the others take
        found = weight_bytes(model, number)
        assert found == pytest.approx(expected(number, 1 - 0.5**number), abs=50)
    assert weight_bytes(model, 5, experts=2.5) == pytest.approx(expected(5, 2.5 / 4), abs=50)
    lm = HFCausalLM(model)
    lm.prefill([0], [[1]])
    more = step_bytes(lm, 1, 5, 9) - step_bytes(lm, 1, 5, 9, experts=2.0)
    assert more == pytest.approx(4 * routed * (1 - 0.5**5 - 0.5), abs=50)


# --- what is read -------------------------------------------------------------------------------


def test_of_a_mixture_real_text_is_read_and_its_experts_are_counted() -> None:
    """The same tokens behind every context, and beside them what the verifier finds likeliest."""
    model = tiny_model("mixtral", num_local_experts=8)
    lm, grid = HFCausalLM(model), ForwardGrid([1, 4], [8, 16], batch=2, repeats=1)
    text = random_ids(23, seed=7)
    reads = of_text(lm, grid, text)
    for context in grid.contexts:
        for row, read in enumerate(reads[context]):
            root = (0, 11)[row]
            whole = [text[(root - context + place) % 23] for place in range(context + 4)]
            assert [*read.before, *read.chain] == whole
            likeliest = plain_logits(model, whole)[context:].topk(3).indices.tolist()
            others = [
                [t for t in each if t != own]
                for each, own in zip(likeliest, whole[context + 1 :], strict=False)
            ]
            assert list(read.nodes) == [
                (0, read.chain[1]),
                (0, others[0][0]),
                (1, read.chain[2]),
            ]
    counted = count_experts(lm, grid, reads)
    assert set(counted) == set(grid.shapes)
    for shape, number in counted.items():
        taken: list[set[int]] = [set(), set()]
        for read in reads[shape.context]:
            tree = read.tree(shape)
            for node in range(len(tree.token_ids)):
                path = [tree.token_ids[each] for each in path_to(tree, node)]
                routes = routes_of([*read.before, *path], model)
                taken = [a | b for a, b in zip(taken, routes, strict=True)]
        assert number == sum(map(len, taken)) / 2, shape


def test_a_tree_lies_along_the_text_with_others_beside_it() -> None:
    """By depth and rank together; a rank that is the text's own token is passed over."""
    likeliest = torch.tensor([[11, 21, 31], [12, 22, 32], [43, 13, 53], [14, 24, 34]])
    nodes = along([9, 11, 22, 13, 14, 15, 16], likeliest)
    assert nodes == [
        *((0, 11), (0, 21)),  # depth 1: the text's own, then the likeliest other
        *((1, 22), (0, 31)),  # depth 2 below the first node
        *((1, 12), (3, 13)),
    ]


def routes_of(text: Sequence[int], model: PreTrainedModel) -> list[set[int]]:
    """Return the experts of a text's last token, layer by layer."""
    experts = Routing(HFCausalLM(model)).forward([0], torch.tensor([list(text)])).experts
    assert experts is not None
    return [set(layer) for layer in experts[0, -1].tolist()]


def test_experts_are_written_beside_the_seconds_and_make_the_bytes() -> None:
    lm = HFCausalLM(tiny_model("mixtral"))
    shapes = [Shape(False, 1, 8), Shape(False, 4, 8), Shape(True, 4, 8)]
    grid, samples = ForwardGrid([1, 4], [8], 1, 1), {shape: [1.0] for shape in shapes}
    experts = dict(zip(shapes, (2.0, 2.5, 3.5), strict=True))
    found = forwards_of(lm, grid, samples, 1e6, experts)
    assert [point.experts for point in found.points] == [2.0, 2.5, 3.5]
    assert found.points[1].num_bytes < found.points[2].num_bytes, "as many tokens, more experts"
    row = found.to_row()
    assert Forwards.of_row(row) == found
    for point in row["points"]:
        del point["experts"]
    older = Forwards.of_row(row)
    assert [point.experts for point in older.points] == [None] * 3
    lines = list(experts_said(found))
    assert lines[0].endswith("text that goes on: 1: 2.0, 4: 2.5")
    assert lines[1].endswith("with others beside it: 4: 3.5")
    assert not list(experts_said(older))


@pytest.mark.parametrize(("family", "seen"), [("llama", 40), ("mistral", 5)])
def test_windows_bound_what_is_read(family: str, seen: int) -> None:
    lm = HFCausalLM(tiny_model(family))  # mistral's window is of 6 cells, its own among them
    lm.prefill([0], [[1]])
    least = weight_bytes(lm.model, 3)
    assert step_bytes(lm, 1, 3, 40) == least + 2 * (seen + 3) * CELL


def test_contexts_end_where_the_model_does() -> None:
    assert contexts_within([256, 1024, 4096, 8192], [1, 64], 1024) == [256, 960]
    assert contexts_within([256, 1024], [1, 64], 8192) == [256, 1024]
    with pytest.raises(UserError, match="tokens=64: expected fewer than the 64"):
        contexts_within([256], [1, 64], 64)


def test_a_filler_is_as_large_as_wanted() -> None:
    read = Read([0] * 9, [7, 8, 9, 10, 11], [(0, 1), (0, 2), (0, 3), (0, 4)])
    chain, tree = read.tree(Shape(False, 4, 9)), read.tree(Shape(True, 4, 9))
    assert (chain.token_ids, chain.depths) == ((7, 8, 9, 10), (0, 1, 2, 3))
    assert (tree.token_ids, tree.depths) == ((7, 1, 2, 3), (0, 1, 1, 1))
    assert read.tree(Shape(False, 1, 9)).token_ids == (7,)


def test_a_copy_counts_what_is_read_and_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 4.0, 10.0, 12.0, *range(20, 60)])
    monkeypatch.setattr("specdec.decoding.decoder.now", lambda: next(times))
    monkeypatch.setattr(copying, "MEBIBYTES", {"cpu": 3})
    monkeypatch.setattr(copying, "REPEATS", 2)
    found = copying.copied_bytes_per_second(torch.device("cpu"))
    assert found == 2 * (3 << 20) / 2.0, "the best one"


# --- growth -------------------------------------------------------------------------------------


def forwards(batch: int = 1, power: float = 0.5) -> Forwards:
    points = [
        TimedForward(shape, batch * shape.num_tokens**power * shape.context**0.25, 1)
        for shape in SHAPES
    ]
    return Forwards(batch, 1.0, tuple(points))


def test_lines_of_growth_are_the_points() -> None:
    lines = {line.label: line for line in by_context(forwards())}
    assert list(lines) == ["chain of 1", "chain of 2", "chain of 4", "tree of 4"]
    assert list(lines["chain of 4"].x) == [8, 16]
    assert lines["chain of 4"].milliseconds == pytest.approx([2e3 * 8**0.25, 2e3 * 2])
    assert [line.label for line in by_tokens(forwards())][-1] == "tree, context 16"
    assert all(each == pytest.approx((0.25, 8, 16)) for each in exponents(lines["tree of 4"]))


def test_what_grows_faster_than_linear_is_named() -> None:
    fine = growth_said("tokens", by_tokens(forwards()))
    assert fine.startswith("growth with tokens: never faster than linear")
    assert "exponent 0.50" in fine
    steep = growth_said("tokens", by_tokens(forwards(power=2.0)))
    assert steep.startswith("growth with tokens: FASTER THAN LINEAR (chain, context ")
    assert "chain, context 8: 1 to 2, exponent 2.00" in steep
    assert "only one was timed" in growth_said("context", [Series("a", [8], [1.0])])


def test_what_a_constant_hides_is_named() -> None:
    """Exponents of the whole stay below 1, and yet the last stretch adds twice as much for each."""
    hidden = Series("hidden", [10, 20, 30], [100.0, 101.0, 103.0])
    flat = Series("flat", [10, 20, 30], [100.0, 102.0, 103.0])
    assert growth_said("context", [flat]).endswith("; no line bends upwards")
    said = growth_said("context", [flat, hidden])
    assert "never faster than linear" in said
    assert said.endswith(
        "hidden bends upwards most: 0.2000 ms for each from 20 to 30, 0.1000 before"
    )
    assert growth_said("context", [Series("two", [1, 2], [1.0, 1.5])]).endswith("exponent 0.58)")


def test_batches_are_compared_where_they_have_shapes_in_common() -> None:
    lines = by_batch([forwards(1), forwards(4)])
    assert len(lines) == 6, "one token and four, chains and trees, behind two contexts"
    assert all(list(line.x) == [1, 4] for line in lines)
    assert [e for line in lines for e, *_ in exponents(line)] == pytest.approx([1.0] * 6)


def test_what_has_nothing_to_be_compared_with_is_refused_beforehand() -> None:
    require_comparable(GRID, {"one.json": forwards(1), "four.json": forwards(4)})
    with pytest.raises(UserError, match=r"beside='two\.json': batch=2 again"):
        require_comparable(GRID, {"two.json": forwards(2)})
    other = replace(GRID, contexts=[9])
    with pytest.raises(UserError, match=r"beside='one\.json': expected a file of the same"):
        require_comparable(other, {"one.json": forwards(1)})


def test_growth_is_drawn_with_all_its_points() -> None:
    axis = Axis("mine_by_context", "context (tokens)", "A forward over the context")
    lines = [Series(f"line {n}", [8, 16, 32], [1.0 * n, 2.0 * n, 3.0 * n]) for n in range(1, 13)]
    plots = growth(axis, [*lines, Series("alone", [8], [1.0])], "Medians.")
    assert list(plots) == ["mine_by_context", "mine_by_context-2"], "ten lines a plot"
    drawn = [line for plot in plots.values() for line in plot.figure.axes[0].lines]
    assert [np.asarray(line.get_ydata()).tolist() for line in drawn] == [
        line.milliseconds for line in lines
    ]
    axes = plots["mine_by_context"].figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlabel() == "context (tokens)"

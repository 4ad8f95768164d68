"""Steps by graphs: any lengths, trees and rows, in buffers that come and go, are as run eagerly."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec as sd
from specdec.core.tree import CandidateTree
from specdec.core.values import Layer
from specdec.lm.batch import TreeBatch
from specdec.lm.hf import HFCausalLM
from specdec.runtime.graphs import GraphKey, GraphSteps
from specdec.runtime.program import Inputs
from specdec.runtime.proven import ProvenSteps, RefusedError
from specdec.runtime.stock_steps import StockSteps
from tests.support.captured import CAPTURABLE, Emulated, capturable
from tests.support.each_proposer import PROPOSERS
from tests.support.families import noisy_copy, tiny_model

pytestmark = pytest.mark.usefixtures("without_gradients")

SHAPES = [(-1,), (-1, 0, 1), (-1, 0, 0, 1, 2)]  # one token, a chain, a tree
PATHS = [[0], [0, 1], [0, 2, 4]]  # of those, what is kept
LAYERS: tuple[Layer, ...] = (0, "final")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Emulated:
    made = Emulated()
    monkeypatch.setattr("specdec.lm.hf.steps_of", made)
    monkeypatch.setattr("specdec.runtime.graphs.SMALLEST", 16)  # so that texts outgrow it
    return made


class Pair:
    """The same model twice, run eagerly and by graphs; both are asked the same."""

    def __init__(self, model: Any, seed: int = 0):
        self.both = [HFCausalLM(model, runtime=name) for name in ("eager", "cuda_graphs")]
        self._random = Random(seed)

    def open(self, lengths: Sequence[int], capacity: int) -> None:
        """Start afresh with rows of text."""
        texts = [[self._random.randrange(2, 60) for _ in range(length)] for length in lengths]
        for lm in self.both:
            lm.open(len(lengths), capacity)
            lm.prefill(range(len(lengths)), texts)

    def step(self, rows: Sequence[int]) -> None:
        """Read a tree of some shape in each row; compare; keep the same path."""
        shape = self._random.randrange(len(SHAPES))
        parents = SHAPES[shape]
        drawn = [tuple(self._random.randrange(2, 60) for _ in parents) for _ in rows]
        trees = [CandidateTree(token_ids, parents) for token_ids in drawn]
        found: list[list[Tensor]] = []
        for lm in self.both:
            starts = [lm.length(row) for row in rows]
            said = lm.forward(rows, *TreeBatch.of(trees, starts, lm.device), layers=LAYERS)
            for row, start in zip(rows, starts, strict=True):
                lm.keep(row, start, PATHS[shape])
            found.append([said.logits, *said.hidden.values()])
        eager, by_graph = found
        assert torch.equal(eager[0].argmax(-1), by_graph[0].argmax(-1))
        for ours, theirs in zip(by_graph, eager, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("family", CAPTURABLE)
def test_all_families_say_what_they_say_eagerly(family: str, emulated: Emulated) -> None:
    """Texts outgrow buckets and buffers; rows join and leave; caches come and go."""
    pair = Pair(capturable(family))
    for lengths, capacity in (((3, 9, 6), 24), ((11,), 14)):
        pair.open(lengths, capacity)
        for rows in ([0], [0, 1, 2], [1, 2], [0, 2], [0, 1, 2]):
            pair.step([row for row in rows if row < len(lengths)] or [0])
    (graphs,) = emulated.steps
    lengths = {shape.length for shape in graphs._graphs}
    assert len(lengths) > 1


CASES = [
    *(("llama", name) for name in sorted(PROPOSERS)),
    *((family, "draft_tree") for family in ("gpt2", "gemma3_text", "deepseek_v3")),
]


@pytest.mark.whole
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("family", "name"), CASES)
def test_text_is_the_same(family: str, name: str, temperature: float) -> None:
    verifier = capturable(family)
    draft = noisy_copy(verifier, 0.02)
    found: list[list[tuple[list[int], int]]] = []  # texts, and in how many steps
    for runtime in ("eager", "cuda_graphs"):
        models = [HFCausalLM(each, runtime=runtime) for each in (verifier, draft)]
        decoder = sd.SpeculativeDecoder(
            models[0],
            PROPOSERS[name](models[0], models[1]),
            sd.Rejection(),
            sampling=sd.Sampling(temperature),
            stopping=sd.Stopping(max_new_tokens=12),
            batch=3,
        )
        requests = [sd.Request(str(at), [3 + at] * (2 + 3 * at)) for at in range(5)]
        traces = decoder.decode(requests)
        found.append([(list(trace.output_ids), len(trace.steps)) for trace in traces])
    assert found[0] == found[1]


def grown(lm: HFCausalLM, num_steps: int) -> None:
    for token in range(num_steps):
        lm.forward([0], torch.tensor([[token + 2]]))


def test_one_graph_serves_a_bucket(emulated: Emulated) -> None:
    lm = HFCausalLM(tiny_model("llama"), runtime="cuda_graphs")
    lm.open(1, 64)
    lm.prefill([0], [[5, 6, 7]])
    grown(lm, 30)
    lengths = [shape.length for shape in emulated.steps[0]._graphs]
    assert lengths == [16, 32, 64]


@pytest.mark.usefixtures("emulated")
def test_what_a_step_said_outlives_the_next_steps() -> None:
    lm = HFCausalLM(tiny_model("llama"), runtime="cuda_graphs")
    lm.prefill([0], [[5, 6, 7]])
    said = lm.forward([0], torch.tensor([[3]]), layers=(0,))
    copies = said.logits.clone(), said.hidden[0].clone()
    for num_new in (1, 2, 1):
        lm.forward([0], torch.arange(num_new)[None], layers=(0,))
    assert torch.equal(said.logits, copies[0])
    assert torch.equal(said.hidden[0], copies[1])


def test_so_many_graphs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    few = Emulated(most=2)
    monkeypatch.setattr("specdec.lm.hf.steps_of", few)
    lm, plain = (HFCausalLM(tiny_model("llama"), runtime=name) for name in ("auto", "eager"))
    lm._run_by("cuda_graphs")
    for each in (lm, plain):
        each.prefill([0], [[5, 6, 7]])
    captured: list[int] = []
    for num_new in (1, 2, 3, 1, 1, 3):  # the third goes where the first was, and back
        token_ids = torch.arange(num_new)[None]
        ours, theirs = (each.forward([0], token_ids).logits for each in (lm, plain))
        assert torch.allclose(ours, theirs, atol=1e-4)
        captured.append(len(few.pools[0].tapes))
        assert len(few.steps[0]) <= 2
    assert captured == [1, 2, 3, 4, 4, 4]


class Forgetful:
    """A tape that keeps no tensor, as a CUDA graph, which knows addresses."""

    def capture(self, program: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        return [each.clone() for each in program()]

    def replay(self) -> None:
        """Once is enough here."""


def step_in(buffers: tuple[Tensor, ...]) -> Inputs:
    token_ids = torch.tensor([[3]])
    return Inputs(token_ids, token_ids, token_ids.clone(), torch.arange(8), (), buffers)


def test_graphs_go_with_their_buffers() -> None:
    steps = GraphSteps(lambda inputs, wanted: (inputs.token_ids * 2,), Forgetful)
    old, new = (tuple(torch.zeros(1, 2, 32, 4) for _ in range(2)) for _ in range(2))
    shapes = [GraphKey.of(step_in(each), ()) for each in (old, new)]
    steps(step_in(old))
    del old
    assert list(steps._graphs) == shapes[:1], "nothing happens until the next is captured"
    steps(step_in(new))
    assert list(steps._graphs) == shapes[1:]


def test_buffers_at_one_address_with_another_capacity_are_others() -> None:
    memory = torch.zeros(1, 2, 64, 4)
    shapes = {GraphKey.of(step_in((memory[:, :, :size],)), ()) for size in (32, 64)}
    assert len(shapes) == 2


@pytest.mark.parametrize(
    ("family", "more", "wait"),
    [
        ("mixtral", {"experts_implementation": "eager"}, "aten."),
        ("falcon", {}, "index by a list at "),
    ],
)
def test_what_waits_is_refused_in_one_line(
    family: str, more: dict[str, Any], wait: str, emulated: Emulated
) -> None:
    lm = HFCausalLM(tiny_model(family, **more), runtime="cuda_graphs")
    lm.prefill([0], [[5, 6]])
    with pytest.raises(RefusedError) as refused:
        lm.forward([0], torch.tensor([[5]]))
    said = str(refused.value)
    assert said.startswith(f"runtime='cuda_graphs': {family} cannot be run this way ({wait}")
    assert f"modeling_{family}.py:" in said
    assert said.endswith("the host would have to wait for the device); runtime=eager runs it")
    assert "\n" not in said
    assert not len(emulated.steps[0])


def test_graphs_are_held_against_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(name: str, model: Any, cache_word: str) -> ProvenSteps:
        """Make graphs that say what they said at first, as a capture without inputs would."""
        return ProvenSteps(GraphSteps(StockSteps(model, cache_word), Forgetful), model, name)

    monkeypatch.setattr("specdec.lm.hf.steps_of", steps)
    lm = HFCausalLM(tiny_model("llama"), runtime="cuda_graphs")
    lm.prefill([0], [[5, 6]])
    lm.forward([0], torch.tensor([[5]]))
    with pytest.raises(RefusedError, match=r"runtime='cuda_graphs': llama differs from itself"):
        lm.forward([0], torch.tensor([[6]]))

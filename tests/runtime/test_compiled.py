"""Compiled steps: one program for all sizes of its kind, and the same text as eagerly."""

import copy
from typing import Any

import pytest
import torch

import specdec as sd
from specdec.core.draft_chain import DraftChain
from specdec.core.tree import CandidateTree
from specdec.lm.batch import TreeBatch
from specdec.lm.check import largest_error
from specdec.lm.hf import HFCausalLM
from specdec.runtime.compiled import CompiledSteps
from specdec.runtime.graphs import GraphSteps
from specdec.runtime.preparation import prepared_seconds
from specdec.runtime.proven import ProvenSteps, RefusedError
from tests.runtime.test_chains import DEPTH, FILTERS, compare
from tests.runtime.test_programs import opened
from tests.support.each_proposer import PROPOSERS
from tests.support.families import FAMILIES, VOCAB_SIZE, noisy_copy, tiny_model
from tests.support.tape import Pool
from tests.support.traced import traced, without_cpp

pytestmark = [
    pytest.mark.whole,
    pytest.mark.thorough,
    pytest.mark.usefixtures("without_gradients"),
]


# One mask or two, no rotations, latent keys and experts; a family takes a quarter of a minute.
TYPICAL = ("llama", "gpt2", "gemma3_text", "deepseek_v3")
OTHERS = sorted(FAMILIES.keys() - set(TYPICAL))


def slow(family: str) -> Any:
    return pytest.param(family, marks=pytest.mark.slow)


@pytest.fixture(name="without_cpp")
def let_torch_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    without_cpp(monkeypatch)


@pytest.mark.usefixtures("without_cpp")
@pytest.mark.parametrize("family", [*TYPICAL, *(slow(each) for each in OTHERS)])
def test_all_families_compile_as_they_are(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "specdec.lm.check.causal_lm", lambda model: HFCausalLM(model, runtime="compiled")
    )
    assert largest_error(tiny_model(family)) < 1e-4


def sizes_differ(lm: HFCausalLM, plain: HFCausalLM) -> None:
    """Go through contexts, trees, batches and buffers of many sizes."""
    before = prepared_seconds()
    for num_rows, capacity in ((1, 16), (3, 40), (2, 64), (1, 90)):
        for each in (lm, plain):
            each.open(num_rows, capacity)
            each.forward(range(num_rows), torch.ones(num_rows, 1, dtype=torch.int64))  # alone
            for row in range(num_rows):
                each.keep(row, 0)
            each.prefill(range(num_rows), [[5 + row] * (3 + 2 * row) for row in range(num_rows)])
        for num_new in (1, 2, 5, 1, 3, 4):
            token_ids = torch.arange(num_rows * num_new).view(num_rows, num_new) % 50
            ours, theirs = (each.forward(range(num_rows), token_ids).logits for each in (lm, plain))
            assert torch.allclose(ours, theirs, atol=1e-3)
    assert prepared_seconds() > before


@pytest.mark.usefixtures("without_cpp")
def test_one_program_serves_all_sizes() -> None:
    model = tiny_model("llama")
    sizes_differ(HFCausalLM(model, runtime="compiled"), HFCausalLM(model))
    steps: Any = traced(model, HFCausalLM(model)._cache_word)
    programs = steps._steps._programs.values()
    assert len(programs) == 4  # one row or more, one cell or more
    assert all(program._direct is not None for program in programs), "no front end is in between"


@pytest.mark.usefixtures("without_cpp")
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_one_program_serves_all_trees(family: str) -> None:
    model = tiny_model(family)
    texts = list[list[list[int]]]()
    for runtime in ("compiled", "eager"):
        lm = HFCausalLM(model, runtime=runtime)
        draft = sd.DraftModel(HFCausalLM(model), sd.Sparse([[0], [1], [0, 0], [1, 0], [1, 1]]))
        stopping = sd.Stopping(max_new_tokens=9)
        decoder = sd.SpeculativeDecoder(lm, draft, sd.Rejection(), FILTERS, stopping)
        traces = decoder.decode([sd.Request(str(n), [3] * n) for n in (3, 9, 5)])
        texts.append([list(trace.output_ids) for trace in traces])
    assert texts[0] == texts[1]
    steps: Any = traced(model, lm._cache_word)
    programs = {kind: each for kind, each in steps._steps._programs.items() if kind.num_masks}
    assert programs
    assert all(each._direct is not None for each in programs.values()), "no front end is between"


@pytest.mark.usefixtures("without_cpp")
@pytest.mark.parametrize(
    ("family", "sampling"), [("llama", FILTERS), ("gemma3_text", sd.Sampling(0.0))]
)
def test_chains_are_compiled(family: str, sampling: sd.Sampling) -> None:
    model = tiny_model(family)
    chain = DraftChain(DEPTH, sampling, VOCAB_SIZE)
    for rows, starts in (([0], [5]), ([0, 1, 3], [5, 9, 3, 12])):
        lm, plain = (
            opened(HFCausalLM(model, runtime=name), starts) for name in ("compiled", "eager")
        )
        compare(lm, plain, rows, chain)


@pytest.mark.parametrize(
    ("dtype", "rows"),
    [
        (torch.float32, [0]),
        pytest.param(torch.bfloat16, [0], marks=pytest.mark.thorough),
        pytest.param(torch.float32, [0, 1], marks=pytest.mark.thorough),
    ],
)
def test_inductor_compiles_what_is_decoded(dtype: torch.dtype, rows: list[int]) -> None:
    """One program each, by kernels of our own, since the C++ of each takes half a minute."""
    model: Any = copy.deepcopy(tiny_model("llama", num_hidden_layers=1))
    model = model.to(dtype)
    lm, plain = HFCausalLM(model, runtime="compiled"), HFCausalLM(model)
    for capacity in (16, 64):
        for each in (lm, plain):
            each.open(len(rows), capacity)
            each.prefill(rows, [[5, 6, 7], [8, 9]][: len(rows)])
        for num_new in (2, 5, 3):
            token_ids = torch.arange(num_new).expand(len(rows), -1)
            ours, theirs = (each.forward(rows, token_ids).logits for each in (lm, plain))
            assert torch.allclose(ours, theirs, atol=1e-3 if dtype == torch.float32 else 0.25)


def test_a_full_cache_is_no_size_of_its_own() -> None:
    """A compiler would take it that there are as many cells as are in sight ever after."""
    model = tiny_model("llama", num_hidden_layers=1)
    lm, plain = (HFCausalLM(model, runtime=name) for name in ("compiled", "eager"))
    for each in (lm, plain):
        each.open(1, 80)
        each.prefill([0], [[5] * 48])
    tree = CandidateTree(tuple(range(32)), (-1, *((node - 1) // 2 for node in range(1, 32))))
    for length in (48, 47, 42):
        for each in (lm, plain):
            each.keep(0, length)
        batch = TreeBatch.of([tree], [length], lm.device)
        ours, theirs = (each.forward([0], *batch).logits for each in (lm, plain))
        assert torch.allclose(ours, theirs, atol=1e-3)


def test_compiled_programs_can_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are on a GPU: one program, in graphs of several lengths and widths."""
    made: list[GraphSteps] = []

    def steps(name: str, model: Any, cache_word: str) -> ProvenSteps | None:
        compiled = CompiledSteps(model, cache_word, backend="aot_eager")
        made.append(GraphSteps(compiled, Pool().new_tape, linted=False))
        return None if name == "eager" else ProvenSteps(made[-1], model, name)

    monkeypatch.setattr("specdec.lm.hf.steps_of", steps)
    monkeypatch.setattr("specdec.runtime.graphs.SMALLEST", 16)
    model = tiny_model("llama", num_hidden_layers=1)
    lm, plain = (HFCausalLM(model, runtime=name) for name in ("compiled", "eager"))
    for each in (lm, plain):
        each.open(1, 64)
        each.prefill([0], [[5, 6, 7]])
    for num_new in (2, 5, 2, 5, 2, 5):
        token_ids = torch.arange(num_new)[None]
        ours, theirs = (each.forward([0], token_ids).logits for each in (lm, plain))
        assert torch.allclose(ours, theirs, atol=1e-3)
    assert len(made[0]) == 4


def test_what_cannot_be_compiled_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("g++: out of registers\nat line 5")

    monkeypatch.setattr(torch, "compile", lambda *args, **options: refuse)
    lm = HFCausalLM(tiny_model("qwen2"), runtime="compiled")
    lm.prefill([0], [[3, 4]])
    with pytest.raises(RefusedError) as refused:
        lm.forward([0], torch.tensor([[5]]))
    expected = "qwen2 cannot be run this way (g++: out of registers); runtime=eager runs it"
    assert str(refused.value) == f"runtime='compiled': {expected}"


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    verifier = tiny_model("llama")
    return verifier, noisy_copy(verifier, 0.02)


@pytest.mark.usefixtures("without_cpp")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", sorted(PROPOSERS))
def test_text_is_the_same_in_every_runtime(
    name: str, temperature: float, batch: int, models: tuple[Any, Any]
) -> None:
    found: list[list[tuple[list[int], int]]] = []  # texts, and in how many steps
    for runtime in ("eager", "compiled"):
        verifier, draft = (HFCausalLM(each, runtime=runtime) for each in models)
        decoder = sd.SpeculativeDecoder(
            verifier,
            PROPOSERS[name](verifier, draft),
            sd.Rejection(),
            sampling=sd.Sampling(temperature),
            stopping=sd.Stopping(max_new_tokens=14),
            batch=batch,
        )
        requests = [sd.Request(str(at), [3 + at] * (2 + 3 * at)) for at in range(5)]
        traces = decoder.decode(requests)
        found.append([(list(trace.output_ids), len(trace.steps)) for trace in traces])
    assert found[0] == found[1]

"""Models over several devices say what they say on one, and nothing meets what lies elsewhere."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import specdec as sd
from specdec.core.errors import UserError
from specdec.core.tree import CandidateTree
from specdec.lm import load, placement
from specdec.lm.batch import TreeBatch
from specdec.lm.cache import Writing
from specdec.lm.check import prove
from specdec.lm.check_states import states_differ
from specdec.lm.fingerprint import fingerprint
from specdec.lm.hf import HFCausalLM
from specdec.lm.placement import device_of, is_spread, require_spreadable
from specdec.lm.recurrent import causal_lm
from tests.support.families import tiny_model
from tests.support.marking import thorough
from tests.support.ragged import EXACT, Conversation
from tests.support.spread import FIRST, SECOND, spread, two_devices, two_parts

TREES = [((-1, 0, 0, 1), (0, 2)), ((-1, 0), (0, 1)), ((-1, 0, 0), (0,))]


# --- memory and disk ----------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("cpu", "disk"), ("disk", "cpu")])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mixtral"])
def test_ragged_trees_are_read_as_on_one_device(
    family: str, order: tuple[str, str], tmp_path: Path
) -> None:
    model = tiny_model(family)
    alone = Conversation(tiny_model(family), [9, 4, 1], capacity=4)
    model = spread(model, two_parts(model, *order), tmp_path)
    talk = Conversation(model, [9, 4, 1], capacity=4)
    logits = []
    for each in (alone, talk):
        each.prefill()
        logits.append(each.step([0, 1, 2], [0, 1, 2])[0].logits)
        logits.append(each.step([2, 0], [4, 2])[0].logits)
        each.check_texts()
    assert talk.worst < EXACT
    assert torch.equal(logits[0], logits[2])
    assert torch.equal(logits[1], logits[3])
    assert prove(model, family) < EXACT
    assert states_differ(model) is None


@pytest.mark.parametrize("family", ["qwen3_5_text", "lfm2"])
def test_states_are_kept_where_their_layers_lie(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    assert prove(spread(model, two_parts(model, "disk", "cpu"), tmp_path), family) < EXACT


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> HFCausalLM:
    """The verifier of the zoo with half of its layers, and the head, on disk."""
    there = two_parts(sd.load("zoo:verifier").model, "cpu", "disk")
    monkeypatch.setattr(placement, "DEVICE_MAP", there)
    load._proven.cache_clear()  # what was loaded by another map
    found = sd.load("zoo:verifier", device="auto")
    assert is_spread(found.model)
    assert found.model.lm_head.weight.device.type == "meta"
    load._proven.cache_clear()
    return found


def decoded(verifier: HFCausalLM, proposer: object, batch: int, temperature: float) -> list[object]:
    decoder = sd.SpeculativeDecoder(
        verifier,
        proposer,  # pyright: ignore[reportArgumentType]
        sd.Rejection(),
        sd.Sampling(temperature),
        sd.Stopping(max_new_tokens=12),
        batch=batch,
    )
    texts = ["import os\n\ndef main(", "class A:", "x = 1\n"]
    requests = [sd.Request(text, verifier.encode(text)) for text in texts]
    return [trace.output_ids for trace in decoder.decode(requests)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch", [thorough(1), 3])
def test_texts_are_those_of_one_device(batch: int, temperature: float, on_disk: HFCausalLM) -> None:
    plain = sd.load("zoo:verifier")
    kinds: list[Callable[[HFCausalLM], object]] = [
        lambda verifier: sd.NoProposer(),
        lambda verifier: sd.NGram(3),
        lambda verifier: sd.Medusa.load("zoo:medusa", verifier, sd.Chain(2)),
    ]
    for kind in kinds:
        expected = decoded(plain, kind(plain), batch, temperature)
        assert decoded(on_disk, kind(on_disk), batch, temperature) == expected


def test_it_is_known_as_the_same_model(on_disk: HFCausalLM) -> None:
    assert fingerprint(on_disk) == fingerprint(sd.load("zoo:verifier"))


# --- two devices, as far as places go -----------------------------------------------------------


def converse(family: str, patch: pytest.MonkeyPatch) -> None:
    """Read prompts, a ragged batch of trees, and what follows; all of it on two devices."""
    with two_devices(patch):
        model = tiny_model(family)
        model = spread(model, two_parts(model, FIRST, SECOND))
        lm = causal_lm(model)
        assert (str(lm.device), device_of(model)) == (SECOND, lm.device)
        lm.open(3, 8)
        states = lm.prefill([0, 1, 2], [[2, 3, 4, 5], [3, 4], [7]], layers=(0, "final"))
        trees = [CandidateTree(tuple(range(2, 2 + len(s))), s) for s, _ in TREES]
        starts = [lm.length(row) for row in range(3)]
        there = TreeBatch.of(trees, starts, lm.device)
        first = lm.forward([0, 1, 2], *there, layers=(0, "final"))
        for row, (_, path) in enumerate(TREES):
            lm.keep(row, starts[row], path)
        second = lm.forward([2, 0], torch.zeros(2, 1, dtype=torch.int64, device=lm.device))
        said = [first.logits, second.logits, *first.hidden.values(), *states[0].values()]
        said += [lm.unembed(first.hidden["final"]), lm.embed(first.logits.argmax(-1))]
        assert {str(each.device) for each in said} == {SECOND}
        held = {str(layer.buffers()[0].device) for layer in lm._cache._row_layers}
        assert held == {FIRST, SECOND}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_nothing_meets_what_lies_elsewhere(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    converse(family, monkeypatch)


def test_cells_on_one_device_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: where all layers are given the first one's cells."""
    monkeypatch.setattr(Writing, "cells_on", lambda writing, device: writing.cells)
    with pytest.raises(AssertionError, match="indexes lazy:0"):
        converse("llama", monkeypatch)


# --- options ------------------------------------------------------------------------------------


def test_a_draft_model_is_placed_beside_its_verifiers_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = torch.device("cuda:1")
    checkpoint = load.Checkpoint("zoo:verifier")
    monkeypatch.setitem(load._heads_of_spread, checkpoint, there)
    found = load._placement("auto", {"path": "zoo:verifier", "revision": None})
    assert (found.device, found.is_spread) == (there, False)
    assert load._placement("cpu", "zoo:verifier").device == torch.device("cpu")
    assert load._placement("auto", None).is_spread


def test_what_one_device_holds_is_not_spread() -> None:
    found = sd.load("zoo:draft", device="auto", runtime="auto")
    assert found.device == sd.load("zoo:draft").device or torch.cuda.is_available()
    assert found.runtime == "eager"


def test_what_goes_with_one_device_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.runtime.choice.compiler", lambda: "c++")
    expected = r"device='auto': layers .* are run by runtime=eager alone, not by 'compiled'"
    with pytest.raises(UserError, match=expected):
        load.require_loadable("zoo:verifier", device="auto", runtime="compiled")
    with pytest.raises(UserError, match=r"device='auto': an adapter is merged on one device"):
        require_spreadable("auto", "eager", "a folder")


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"device='auto': one process spreads a model over all"):
        load.require_loadable("zoo:verifier", device="auto")

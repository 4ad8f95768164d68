"""Some layers of a stock model draft, and the rest goes on from there: no token is read twice."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import specdec as sd
from specdec.core.errors import UserError
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.check_split import require_parts, require_splits, split_error, why_whole
from specdec.lm.hf import HFCausalLM
from specdec.lm.layer_split import LayerSplit, decoder_layers
from specdec.lm.load import load
from specdec.lm.recomputing import RecomputingLM
from specdec.proposer.early_exit import EarlyExit
from specdec.proposer.layer_skip import LayerSkip
from specdec.verification.rejection import Rejection
from tests.support.families import FAMILIES, tiny_model

TYPES = ["sliding_attention", "full_attention"] * 2
DEEPER: dict[str, dict[str, Any]] = {
    name: {"num_hidden_layers": 4, **({"layer_types": TYPES} if "layer_types" in known else {})}
    for name, known in FAMILIES.items()
}
SHORT = ("llama", "gpt2", "gemma3_text", "falcon")  # of unlike positions, masks and layers
ALL = [pytest.param(name, marks=[] if name in SHORT else pytest.mark.thorough) for name in FAMILIES]


def deeper(family: str) -> PreTrainedModel:
    return tiny_model(family, **DEEPER[family])


@pytest.mark.parametrize("family", ALL)
def test_two_parts_say_what_the_whole_does(family: str) -> None:
    lm = HFCausalLM(deeper(family))
    for skipped in ([2, 3], [1], [3]):
        error = split_error(lm, LayerSplit(lm.model, skipped))
        assert error < 1e-5, f"without {skipped}: {error:.1e}"


def test_the_model_itself_stays_as_it_is() -> None:
    model = deeper("llama")
    before = list(decoder_layers(model))
    split = LayerSplit(model, [1, 2])
    assert list(decoder_layers(model)) == before
    assert decoder_layers(split.draft)[0] is before[0]
    assert next(split.draft.parameters()) is next(model.parameters())


def test_a_model_whose_layers_hand_on_more_is_refused() -> None:
    """Its last layer adds what its first one read: neither cells nor states hold that."""
    model = deeper("llama")
    seen: dict[str, torch.Tensor] = {}
    layers = decoder_layers(model)

    def note(module: nn.Module, given: tuple[Any, ...]) -> None:
        seen["first"] = given[0]

    def add(module: nn.Module, given: tuple[Any, ...], found: torch.Tensor) -> torch.Tensor:
        return found + seen["first"].mean(dim=1, keepdim=True)

    layers[0].register_forward_pre_hook(note)
    layers[3].register_forward_hook(add)
    lm = HFCausalLM(model)
    with pytest.raises(UserError, match=r"^verifier: llama cannot draft with its own layers"):
        require_splits(lm, LayerSplit(model, [2, 3]), "verifier")


@pytest.mark.parametrize(
    ("skipped", "said"),
    [([], "[]"), ([4], "[4]"), ([0, 1, 2, 3], "[0, 1, 2, 3]"), ([1, 1], "[1, 1]")],
)
def test_layers_that_cannot_be_skipped(skipped: Sequence[int], said: str) -> None:
    with pytest.raises(UserError) as caught:
        LayerSplit(deeper("llama"), skipped)
    assert str(caught.value).startswith(f"skipped_layers={said}: expected different numbers from 0")


def test_models_that_read_whole_texts_alone_are_refused() -> None:
    for lm, reason in (
        (RecomputingLM(deeper("llama")), "verifier.cache=none"),
        (HFCausalLM(deeper("llama"), runtime="compiled"), "runtime=eager alone"),
    ):
        with pytest.raises(UserError, match=reason):
            require_parts(lm, "verifier")
    assert why_whole(tiny_model("lfm2").config) is not None
    assert why_whole(deeper("llama").config) is None


def test_a_cache_that_forgets() -> None:
    """Cells that go do so between steps, so that sliding caches serve; emptied ones are refused."""
    sliding = load("zoo:verifier", cache=sd.SlidingWindow(max_tokens=24, keep_first=2))
    tree = sd.Chain(3)
    texts = []
    for proposer in (sd.NoProposer(), EarlyExit(sliding, tree), LayerSkip(sliding, tree, [3])):
        stopping, greedy = Stopping(40), sd.Sampling(temperature=0)
        decoder = SpeculativeDecoder(sliding, proposer, Rejection(), greedy, stopping)
        texts.append(decoder.decode([Request("one", list(range(50, 70)))])[0].output_ids)
    assert texts[0] == texts[1] == texts[2]
    emptied = load("zoo:verifier", cache=sd.Clear(max_tokens=24))
    with pytest.raises(UserError, match="its cache is emptied while it reads"):
        EarlyExit(emptied, tree)


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[Counter[int]]:
    """Count the tokens that each layer reads."""
    found: Counter[int] = Counter()

    def count(number: int) -> Any:
        def see(module: nn.Module, given: tuple[Any, ...]) -> None:
            found[number] += given[0].shape[0] * given[0].shape[1]

        return see

    layers = decoder_layers(model)
    hooks = [layer.register_forward_pre_hook(count(n)) for n, layer in enumerate(layers)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


TREES = [sd.Chain(3), sd.Sparse([[0], [1], [0, 0], [1, 0], [0, 0, 0]])]


@pytest.mark.parametrize("tree", TREES, ids=["chain", "tree"])
@pytest.mark.parametrize("skipped", [[2, 3], [1], [1, 3]])
def test_no_shared_layer_reads_a_token_twice(tree: Any, skipped: list[int]) -> None:
    """As many as the whole tree has nodes, in each layer; but for those behind a skipped one."""
    lm = HFCausalLM(deeper("llama"))
    proposer = EarlyExit(lm, tree, 2) if skipped == [2, 3] else LayerSkip(lm, tree, skipped)
    request = Request("one", [5, 6, 7, 8])
    greedy, stopping = sd.Sampling(temperature=0), Stopping(16)
    decoder = SpeculativeDecoder(lm, proposer, Rejection(), greedy, stopping)
    with counted(lm.model) as read:
        (trace,) = decoder.decode([request])
    prefill = len(request.token_ids) - 1
    nodes = sum(1 + step.drafted for step in trace.steps)
    assert nodes > len(trace.steps), "nothing was drafted"
    for layer in range(4):
        if layer < min(skipped) or layer in skipped:
            assert read[layer] == prefill + nodes, f"layer {layer}"
        else:  # it drafted with other states than those it verifies with
            assert read[layer] > prefill + nodes, f"layer {layer}"

"""Ragged batches of trees through our cache equal plain text through the stock model.

Each family is a tiny random model. What is compared, and with what, is in `ragged.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.core.tree import CandidateTree
from specdec.core.values import Layer
from specdec.lm import hf
from specdec.lm.batch import TreeBatch, pad
from specdec.lm.hf import HFCausalLM
from tests.support.families import (
    EACH_FAMILY,
    FAMILIES,
    VOCAB_SIZE,
    WINDOW,
    WINDOWED,
    plain_logits,
    random_ids,
    tiny_model,
)
from tests.support.ragged import EXACT, Conversation, difference, path_to

# Eager attention adds whatever mask it is given, sdpa reads booleans too: both are run.
EAGER = ["llama", "mistral", "gemma3_text"]
MODELS = [*((family, None) for family in FAMILIES), *((family, "eager") for family in EAGER)]
each_model = pytest.mark.parametrize(("family", "attention"), MODELS)
each_family = pytest.mark.parametrize("family", EACH_FAMILY)


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make prompts need several prefill forwards, and end at different ones."""
    monkeypatch.setattr(hf, "PREFILL_CHUNK", 4)


# --- logits -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_chunks")
@each_model
def test_ragged_trees_equal_plain_text(family: str, attention: str | None) -> None:
    """Several steps of uneven trees in some of the rows, neighbours or not, in any order."""
    talk = Conversation(tiny_model(family, attention=attention), [13, 2, 8], capacity=64)
    talk.prefill()
    for rows, shapes in [
        ([0, 1, 2], [0, 1, 2]),
        ([0, 2], [3, 0]),
        ([2, 1], [2, 4]),
        ([1], [0]),
        ([0, 1, 2], [1, 3, 1]),  # chains only: padded, without a mask of their own
        ([0, 1, 2], [4, 2, 0]),
    ]:
        talk.step(rows, shapes)
        assert talk.worst < EXACT, (
            f"{family}: trees {shapes} in rows {rows} differ from plain text by {talk.worst:.1e}"
        )
    talk.check_texts()
    assert talk.worst < EXACT, f"{family}: after the last step, {talk.worst:.1e}"
    assert min(map(len, talk.texts)) > WINDOW


@pytest.mark.usefixtures("short_chunks")
@each_family
def test_buffers_grow_and_keep_what_they_hold(family: str) -> None:
    talk = Conversation(tiny_model(family), [9, 3, 1], capacity=2)
    talk.prefill()
    for step in range(4):
        talk.step([0, 1, 2], [step, 0, (step + 2) % 5])
        assert talk.worst < EXACT, f"{family}: {talk.worst:.1e} at step {step}"
    assert max(map(len, talk.texts)) > 16, "the rows are too short to need larger buffers"


@each_family
def test_rows_of_one_length_equal_plain_text(family: str) -> None:
    """Plain text in rows that start alike takes a shorter way: slices, one mask for all rows."""
    model = tiny_model(family)
    lm = HFCausalLM(model)
    lm.open(2, capacity=64)
    texts = [random_ids(40, seed) for seed in (1, 2)]
    truths = [plain_logits(model, text) for text in texts]
    lm.prefill([0, 1], [text[:5] for text in texts])
    start = 5
    for num_new in (1, 1, 3, 1, 9, 2, 1, 17):
        end = start + num_new
        logits = lm.forward([0, 1], torch.tensor([text[start:end] for text in texts])).logits
        for row, truth in enumerate(truths):
            error = difference(logits[row], truth[start:end])
            assert error < EXACT, f"{family}: row {row}, cells {start} to {end}: {error:.1e}"
        start = end
    # One row is rewound, so that the rows are ragged, and then they are level again.
    lm.keep(1, 30)
    lm.forward([1], torch.tensor([texts[1][30:40]]))
    both = lm.forward([0, 1], torch.tensor([[7], [7]])).logits[:, 0]
    for row, text in enumerate(texts):
        error = difference(both[row], plain_logits(model, [*text, 7])[-1])
        assert error < EXACT, f"{family}: row {row} after the rewind: {error:.1e}"


@each_family
def test_padding_at_the_end_of_a_row_leaves_no_trace(family: str) -> None:
    """Rows with fewer new tokens are padded; `keep` must drop the padding and its positions."""
    model = tiny_model(family)
    lm = HFCausalLM(model)
    lm.open(2, capacity=64)
    texts = [random_ids(20, seed) for seed in (3, 4)]
    lm.prefill([0, 1], [texts[0][:10], texts[1][:7]])
    for end in (13, 16, 20):  # the second row lags behind, by a different number each time
        starts = [lm.length(0), lm.length(1)]
        new = [texts[0][starts[0] : end], texts[1][starts[1] : end - 5]]
        logits = lm.forward([0, 1], pad(new, lm.device)).logits
        for row, ids in enumerate(new):
            lm.keep(row, starts[row] + len(ids))
            truth = plain_logits(model, texts[row][: starts[row] + len(ids)])[-len(ids) :]
            error = difference(logits[row, : len(ids)], truth)
            assert error < EXACT, f"{family}: row {row} up to {starts[row] + len(ids)}: {error:.1e}"


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "gemma3_text",
        "gpt2",
        "opt",
    ],
)
def test_padding_never_reaches_beyond_the_context(family: str) -> None:
    """A nearly full row beside one with a long chain: its padding has no position embedding.

    `_general` numbers padding on from the row's length, also beyond `max_length`, where learned
    position embeddings end: an IndexError on the CPU, a device-side assertion on a GPU.
    """
    aliases: dict[str, Any] = {"n_positions": 16} if family == "gpt2" else {}
    model = tiny_model(family, max_position_embeddings=16, **aliases)
    lm = HFCausalLM(model)
    assert lm.max_length == 16
    texts = [random_ids(15, 1), random_ids(4, 2)]
    lm.open(2, capacity=16)
    lm.prefill([0, 1], [texts[0][:-1], texts[1]])
    logits = lm.forward([0, 1], pad([texts[0][-1:], random_ids(6, 3)], lm.device)).logits
    assert difference(logits[0, 0], plain_logits(model, texts[0])[-1]) < EXACT


# --- negative controls --------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("mistake", ["positions", "mask", "path"])
def test_the_comparison_notices_a_mistake(family: str, mistake: str) -> None:
    """These models must depend on positions, masks and paths, or nothing above means anything."""
    model = tiny_model(family)
    lm = HFCausalLM(model)
    text = random_ids(9, seed=1)
    tree = CandidateTree((11, 12, 13, 14, 15, 16), (-1, 0, 0, 1, 2, 4))
    lm.prefill([0], [text])
    token_ids, positions, attend = TreeBatch.of([tree], [9], lm.device)
    if mistake == "positions":
        positions = 9 + torch.arange(6)[None]
    if mistake == "mask":
        attend = torch.ones(1, 6, 15, dtype=torch.bool).tril(9)
    said = lm.forward([0], token_ids, positions, attend).logits[0, 5]
    accepted = [*text, 11, 13, 15, 16]
    if mistake == "path":
        lm.keep(0, 9, (0, 1, 3))
        said, accepted = lm.forward([0], torch.tensor([[7]])).logits[0, 0], [*accepted, 7]
    error = difference(said, plain_logits(model, accepted)[-1])
    assert error > 100 * EXACT, (
        f"{family}: a wrong {mistake} makes a difference of {error:.1e} only"
    )


@pytest.mark.parametrize("family", sorted(WINDOWED))
def test_windows_matter_to_the_windowed_families(family: str) -> None:
    text = random_ids(14, seed=5)
    narrow = plain_logits(tiny_model(family), text)
    wide = plain_logits(tiny_model(family, sliding_window=64), text)
    assert difference(narrow[:WINDOW], wide[:WINDOW]) < EXACT
    assert difference(narrow[-1], wide[-1]) > 100 * EXACT, f"{family} has no window at all"


# --- hidden states ------------------------------------------------------------------------------

LAYERS: tuple[Layer, ...] = (0, "final")


@contextmanager
def watched(model: PreTrainedModel) -> Iterator[dict[Layer, Tensor]]:
    """Note what leaves decoder layer 0, and what the vocabulary head reads."""
    seen: dict[Layer, Tensor] = {}
    layers = next(
        module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList)
    )

    def leaves(module: torch.nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        seen[0] = (output if isinstance(output, Tensor) else output[0])[0]

    def enters(module: torch.nn.Module, args: tuple[Tensor]) -> None:
        seen["final"] = args[0][0]

    head = model.get_output_embeddings()
    assert head is not None
    hooks = [
        layers[0].register_forward_hook(leaves),
        head.register_forward_pre_hook(enters),
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def plain_features(model: PreTrainedModel, token_ids: Sequence[int]) -> dict[Layer, Tensor]:
    """What the stock model's own modules hand on for this text; [T, H] each."""
    with watched(model) as seen:
        plain_logits(model, token_ids)
    return dict(seen)


@pytest.mark.usefixtures("short_chunks")
@each_family
def test_features_are_the_hidden_states_of_the_stock_model(family: str) -> None:
    """Of prefilled text, of every node of a tree, and of the cells behind an accepted path."""
    model = tiny_model(family)
    talk = Conversation(model, [10, 3, 7], capacity=64)
    prompts = [list(text) for text in talk.texts]
    for row, features in enumerate(talk.prefill(LAYERS)):
        truth = plain_features(model, prompts[row])
        for layer in LAYERS:
            error = difference(features[layer], truth[layer])
            assert error < EXACT, f"{family}: prefill, row {row}, layer {layer}: {error:.1e}"
    for rows, shapes in [([0, 1, 2], [0, 1, 2]), ([0, 2], [2, 0])]:
        before = [list(talk.texts[row]) for row in rows]
        forward, trees = talk.step(rows, shapes, LAYERS)
        for index, tree in enumerate(trees):
            for node in range(len(tree.token_ids)):
                path = [tree.token_ids[number] for number in path_to(tree, node)]
                truth = plain_features(model, before[index] + path)
                for layer in LAYERS:
                    error = difference(forward.hidden[layer][index, node], truth[layer][-1])
                    assert error < EXACT, f"{family}: node {node}, layer {layer}: {error:.1e}"


@each_family
def test_layers_are_numbered_as_in_transformers(family: str) -> None:
    """Layer i is `hidden_states[i + 1]`, "final" the last entry; both ways of reading agree."""
    model = three_layers(family)
    lm = HFCausalLM(model)
    text = random_ids(5, seed=6)
    with torch.inference_mode():
        batch = torch.tensor([text])
        states = model(input_ids=batch, output_hidden_states=True, use_cache=False).hidden_states
    wanted: tuple[Layer, ...] = (1, "final", 0)
    for name, features in [
        ("prefill", lm.prefill([0], [text], wanted)[0]),
        ("forward", _without_rows(lm, text, wanted)),
    ]:
        assert set(features) == set(wanted)
        for layer, entry in ((0, 1), (1, 2), ("final", -1)):
            error = difference(features[layer], states[entry][0])
            assert error < EXACT, f"{family}: {name}, layer {layer}: {error:.1e}"
        assert difference(features[0], features[1]) > 100 * EXACT


def three_layers(family: str) -> PreTrainedModel:
    """Build a model with a layer between the first and the last."""
    overrides: dict[str, Any] = {"num_hidden_layers": 3}
    if "n_layer" in FAMILIES[family]:
        overrides["n_layer"] = 3
    if "layer_types" in FAMILIES[family]:
        overrides["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    return tiny_model(family, **overrides)


def _without_rows(
    lm: HFCausalLM, text: Sequence[int], layers: Sequence[Layer]
) -> dict[Layer, Tensor]:
    lm.keep(0, 0)
    hidden = lm.forward([0], torch.tensor([text]), layers=layers).hidden
    return {layer: states[0] for layer, states in hidden.items()}


def test_no_hidden_states_unless_asked_for() -> None:
    lm = HFCausalLM(tiny_model("llama"))
    assert lm.prefill([0], [[3, 4]]) == [{}]
    assert lm.forward([0], torch.tensor([[5]])).hidden == {}


@pytest.mark.parametrize("layer", [1, 2, -1, "last"])
def test_a_layer_that_is_not_there_is_refused(layer: Layer) -> None:
    """The last layer's output before the final norm is in no `hidden_states` of transformers."""
    with pytest.raises(AssertionError):
        HFCausalLM(tiny_model("llama")).forward([0], torch.tensor([[5]]), layers=[layer])


def test_a_prompt_of_one_token_has_empty_features() -> None:
    """Its only token is the root of the first tree, so there is nothing to prefill."""
    lm = HFCausalLM(tiny_model("llama"))
    lm.open(2, capacity=16)
    features = lm.prefill([0, 1], [[], [3, 4]], LAYERS)
    assert features[1][0].shape == (2, 32)
    assert features[0][0].shape == (0, 32)


def test_vocab_size_and_context_are_the_models() -> None:
    for family in FAMILIES:
        lm = HFCausalLM(tiny_model(family))
        assert (lm.vocab_size, lm.max_length) == (VOCAB_SIZE, 256), family

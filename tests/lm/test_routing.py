"""The experts that a forward says it took are those of routers worked out by hand, cell by cell.

The reference reads each path of a tree as ordinary text through the stock model, notes the hidden
state that each router is given, and applies the family's own formula to it and to the weights.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from specdec.cache.clear import Clear
from specdec.cache.error import ErrorWhenFull
from specdec.cache.sliding_window import SlidingWindow
from specdec.core.errors import UserError
from specdec.core.tree import CandidateTree
from specdec.lm.batch import TreeBatch
from specdec.lm.cached_as import cached_as
from specdec.lm.expert_counts import ExpertCounts
from specdec.lm.hf import HFCausalLM
from specdec.lm.recurrent import causal_lm
from specdec.lm.routing import Routing, distinct, expert_layers, require_plain_steps
from tests.support.families import SMALL, plain_logits, random_ids, tiny_model
from tests.support.ragged import SHAPES, path_to

E, K = 8, 2
SETTINGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": E},
    "olmoe": {"num_experts": E},
    "qwen2_moe": {"num_experts": E, "moe_intermediate_size": 24, "decoder_sparse_step": 1},
    "qwen3_moe": {"num_experts": E, "moe_intermediate_size": 24, "head_dim": 8},
    "granitemoe": {"num_local_experts": E},
    "gpt_oss": {"num_local_experts": E},
    "deepseek_v3": {"n_routed_experts": E, "n_group": 2, "topk_group": 1},
}
each_family = pytest.mark.parametrize("family", SETTINGS)
SPARSE = {"deepseek_v3": 1}  # of two layers, the first of which is dense there


def sparse_model(family: str) -> PreTrainedModel:
    return tiny_model(family, **SETTINGS[family], num_experts_per_tok=K)


def router_of(layer: nn.Module) -> nn.Module:
    """Return what of a layer has a row of weights for each expert."""
    found = [
        module
        for module in layer.modules()
        if tuple(getattr(getattr(module, "weight", None), "shape", ())) == (E, 32)
    ]
    assert len(found) == 1
    return found[0]


def by_logits(router: Any, state: Tensor) -> set[int]:
    scores = router.weight @ state
    bias = getattr(router, "bias", None)
    scores = scores if bias is None else scores + bias
    return set(scores.sort(descending=True).indices[:K].tolist())


def within_groups(router: Any, state: Tensor) -> set[int]:
    """DeepSeek-V3 (2024), equations 13 to 16: sigmoids, biases, the better of two groups."""
    scores = torch.sigmoid(router.weight @ state) + router.e_score_correction_bias
    groups = scores.reshape(2, E // 2)
    best = int(groups.sort(descending=True).values[:, :2].sum(dim=1).argmax())
    order = groups[best].sort(descending=True).indices[:K]
    return {best * (E // 2) + int(place) for place in order}


FORMULAS: dict[str, Callable[[Any, Tensor], set[int]]] = {"deepseek_v3": within_groups}


def by_hand(model: PreTrainedModel, family: str, text: Sequence[int]) -> list[set[int]]:
    """Return the experts of the last token of a text, layer by layer."""
    states: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        states.append(args[0].reshape(-1, args[0].shape[-1])[-1])

    decoder: Any = model.get_decoder()
    layers = list(decoder.layers)[2 - SPARSE.get(family, 2) :]
    routers = [router_of(layer) for layer in layers]
    hooks = [router.register_forward_pre_hook(note) for router in routers]
    plain_logits(model, text)
    for hook in hooks:
        hook.remove()
    formula = FORMULAS.get(family, by_logits)
    return [formula(router, state) for router, state in zip(routers, states, strict=True)]


@torch.no_grad()
@each_family
@pytest.mark.parametrize("lengths", [[9], [13, 2, 8]], ids=["one", "ragged"])
def test_every_cell_of_a_ragged_batch_of_trees(family: str, lengths: list[int]) -> None:
    model = sparse_model(family)
    lm = HFCausalLM(model)
    lm.open(len(lengths), capacity=32)
    rows = list(range(len(lengths)))
    texts = [random_ids(number, seed=number) for number in lengths]
    lm.prefill(rows, texts)
    trees = [
        CandidateTree(tuple(random_ids(len(SHAPES[row][0]), seed=50 + row)), SHAPES[row][0])
        for row in rows
    ]
    experts = Routing(lm).forward(rows, *TreeBatch.of(trees, lengths, lm.device)).experts
    assert experts is not None
    longest = max(len(tree.token_ids) for tree in trees)
    assert experts.shape == (len(rows), longest, SPARSE.get(family, 2), K)
    union: list[set[int]] = [set() for _ in range(experts.shape[2])]
    for row, tree in enumerate(trees):
        for node in range(len(tree.token_ids)):
            path = [tree.token_ids[each] for each in path_to(tree, node)]
            expected = by_hand(model, family, [*texts[row], *path])
            found = [set(layer) for layer in experts[row, node].tolist()]
            assert found == expected, f"{family}: row {row}, node {node}"
            union = [a | b for a, b in zip(union, expected, strict=True)]
    real = torch.cat([experts[row, : len(tree.token_ids)] for row, tree in enumerate(trees)])
    assert distinct(real, E) == [len(each) for each in union]
    assert max(distinct(real, E)) > K, "all tokens take the same experts: nothing was tested"


@each_family
def test_logits_are_as_without_counting(family: str) -> None:
    lm = HFCausalLM(sparse_model(family))
    before = lm.forward([0], torch.tensor([[3, 4, 5]]))
    lm.keep(0, 0)
    after = Routing(lm).forward([0], torch.tensor([[3, 4, 5]]))
    assert torch.equal(before.logits, after.logits)
    assert before.experts is None
    hooks = [module._forward_pre_hooks for module in lm.model.modules()]
    assert not any(hooks), "hooks are there only while a forward is counted"


def test_prefill_and_others_that_share_the_weights_are_not_seen() -> None:
    model = sparse_model("mixtral")
    lm, draft = HFCausalLM(model), HFCausalLM(model)
    routing = Routing(lm)
    lm.prefill([0], [[3, 4, 5]])
    draft.forward([0], torch.tensor([[3]]))
    found = routing.forward([0], torch.tensor([[6, 7]])).experts
    assert found is not None
    assert found.shape[:2] == (1, 2)


def test_numbers_beyond_the_experts_are_none() -> None:
    experts = torch.tensor(
        [[[0, 1]], [[1, 9]], [[8, 3]]]
    )  # of 8: two tokens take one of no weights
    assert distinct(experts, 8) == [3]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_dense_model_has_none(family: str) -> None:
    with pytest.raises(UserError, match=rf"^experts=True: {family} has no experts to count"):
        Routing(HFCausalLM(tiny_model(family)))
    assert not expert_layers(tiny_model(family))


def test_a_cache_that_reads_more_than_the_step_is_refused() -> None:
    for cache, said in [("none", "verifier.cache=none"), (Clear(max_tokens=8), "cache=clear")]:
        with pytest.raises(UserError, match=rf"^experts=true: with {said} a step may read more"):
            require_plain_steps("experts=true", "eager", cache)
    with pytest.raises(UserError, match="by runtime=eager alone, not by 'compiled'"):
        require_plain_steps("experts=true", "compiled", None)
    for cache in (None, Clear(), ErrorWhenFull(max_tokens=8), SlidingWindow(max_tokens=8)):
        require_plain_steps("experts=true", "eager", cache)
    lm = cached_as("none", sparse_model("mixtral"))
    lm.prefill([0], [[3, 4]])
    with pytest.raises(UserError, match="not read by one forward of its tokens alone"):
        Routing(lm).forward([0], torch.tensor([[5]]))


def test_a_sliding_window_is_counted() -> None:
    lm = cached_as(SlidingWindow(max_tokens=8), sparse_model("mixtral"))
    lm.prefill([0], [random_ids(20, seed=1)])
    found = Routing(lm).forward([0], torch.tensor([[5, 6]])).experts
    assert found is not None
    assert found.shape == (1, 2, 2, K)


# --- how many there are -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        *(
            (family, {**settings, "num_experts_per_tok": K})
            for family, settings in SETTINGS.items()
        ),
        ("dbrx", {"ffn_config": {"moe_num_experts": E, "moe_top_k": K}}),
        ("ernie4_5_moe", {"moe_num_experts": E, "moe_k": K}),
        ("hunyuan_v1_moe", {"num_experts": E, "moe_topk": [1, K]}),
        ("phimoe", {"num_local_experts": E, "num_experts_per_tok": K}),
        ("lfm2_moe", {"num_experts": E, "num_experts_per_tok": K}),
    ],
)
def test_configurations_say_how_many(family: str, settings: dict[str, Any]) -> None:
    assert ExpertCounts.of(AutoConfig.for_model(family, **settings)) == (E, K)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma2", "opt", "mistral"])
def test_dense_configurations_say_none(family: str) -> None:
    assert ExpertCounts.of(AutoConfig.for_model(family, **SMALL)) is None


def test_chance_touches_as_many_as_counted_draws() -> None:
    """The formula against an average over draws; tokens take k distinct ones of E each."""
    generator = torch.Generator().manual_seed(0)
    counts = ExpertCounts(E, K)
    for number in (1, 2, 5, 9):
        draws = torch.rand(4000, number, E, generator=generator).topk(K).indices.flatten(1)
        touched = torch.nn.functional.one_hot(draws, E).amax(dim=1).sum(dim=1).float()
        assert counts.expected(number) == pytest.approx(float(touched.mean()), abs=0.08)
    assert counts.expected(1) == pytest.approx(K)
    assert counts.expected(10_000) == pytest.approx(E)


def test_no_preference_of_the_router_touches_more() -> None:
    """The bound: independent tokens that prefer some experts touch no more on average."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        weights = torch.rand(E, generator=generator)
        shares = (K * weights / weights.sum()).clamp(max=1.0)
        for number in (1, 3, 8):
            touched = float((1 - (1 - shares) ** number).sum())
            assert touched <= ExpertCounts(E, K).expected(number) + 1e-9


def test_layers_with_states_read_more_than_a_step() -> None:
    with pytest.raises(UserError, match=r"^experts=True: qwen3_next reads some tokens once more"):
        Routing(causal_lm(tiny_model("qwen3_next")))

"""From states to logits: what a model's own code does with them, whatever that is."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

from specdec.core.errors import UserError
from specdec.lm.check_states import states_differ, states_error
from specdec.lm.hf import HFCausalLM
from specdec.lm.unembedding import logits_of, slope, trained_above
from specdec.proposer.medusa import Medusa, MedusaHeads
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.head_losses import HeadLosses
from specdec.training.loss.kl import KL
from specdec.tree.chain import Chain
from tests.support.families import FAMILIES, SCALED, random_ids, tiny_model

# Beside those of `FAMILIES`: other factors and caps, a bias, a projection, a transform.
MORE: dict[str, dict[str, Any]] = {
    **SCALED,
    "granitemoe": {"logits_scaling": 8.0, "num_local_experts": 4, "num_experts_per_tok": 2},
    "cohere2": {"logit_scale": 0.25, "head_dim": 8},
    "vaultgemma": {"final_logit_softcapping": 3.0, "head_dim": 8, "query_pre_attn_scalar": 8},
    "phi": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "bert": {"is_decoder": True, "type_vocab_size": 1},
}
EXACT = 1e-6


@pytest.mark.parametrize("family", [*FAMILIES, *(f"{name} scaled" for name in MORE)])
def test_states_say_what_the_model_says(family: str) -> None:
    name = family.split()[0]
    model = tiny_model(name, **(MORE[name] if family.endswith("scaled") else {}))
    assert states_error(model) < EXACT
    assert states_differ(model) is None
    lm = HFCausalLM(model)
    token_ids = torch.tensor([random_ids(7, 3)])
    with torch.inference_mode():
        forward = lm.forward([0], token_ids, layers=["final"])
        plain = model(input_ids=token_ids, use_cache=False).logits
        torch.testing.assert_close(lm.unembed(forward.hidden["final"]), plain, rtol=1e-4, atol=1e-4)
    assert (lm.vocab_size, lm.state_size) == (plain.shape[-1], forward.hidden["final"].shape[-1])


@pytest.mark.parametrize("family", SCALED)
def test_the_vocabulary_head_alone_says_something_else(family: str) -> None:
    """Or the test above would show nothing."""
    model = tiny_model(family, **SCALED[family])
    states = 3 * torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        head: Any = model.get_output_embeddings()
        assert float((head(states) - logits_of(model, states)).abs().max()) > 0.5


def test_the_model_is_left_alone() -> None:
    model = tiny_model("llama")
    before = dict(model._modules)
    logits_of(model, torch.zeros(2, 3, 32))
    assert model._modules == before
    assert model.base_model is before["model"]


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_gradients_reach_states_and_weights(family: str) -> None:
    model = tiny_model(family, **SCALED.get(family, {}))
    weights = trained_above(model)
    names = {name for name, weight in model.named_parameters() for own in weights if weight is own}
    assert names == {"lm_head.weight", *(["lm_head.bias"] if family == "phi" else [])}
    states = torch.randn(4, 32, requires_grad=True)
    found = torch.autograd.grad(logits_of(model, states).square().sum(), [states, *weights])
    assert all(float(gradient.abs().max()) > 0 for gradient in found)


@pytest.mark.parametrize(
    ("family", "overrides", "factor"),
    [
        ("llama", {}, 1.0),
        ("granite", {"logits_scaling": 8.0}, 1 / 8),
        ("cohere", {"logit_scale": 0.25}, 0.25),
        ("gemma2", {"final_logit_softcapping": 3.0}, 1.0),  # near zero a cap does nothing
    ],
)
def test_fresh_heads_start_where_the_model_is(
    family: str, overrides: dict[str, Any], factor: float
) -> None:
    model = tiny_model(family, **overrides)
    head: Any = model.get_output_embeddings()
    torch.testing.assert_close(slope(model), factor * head.weight)


@pytest.mark.parametrize("family", SCALED)
@pytest.mark.parametrize("own", [True, False])
def test_teachers_are_the_model_s_own_distributions(family: str, own: bool) -> None:
    """And so are heads that share its vocabulary head: fresh ones say what it says."""
    model = tiny_model(family, **SCALED[family])
    lm = HFCausalLM(model)
    heads = MedusaHeads(32, lm.vocab_size, 1, own_vocabulary_head=own)
    if own:
        heads.start_from(torch.randn(lm.vocab_size, 32, generator=torch.Generator().manual_seed(2)))
    token_ids = torch.tensor([random_ids(9, 4)])
    with torch.no_grad():
        hidden = model.base_model(input_ids=token_ids).last_hidden_state
        log_p = model(input_ids=token_ids).logits.log_softmax(-1)[0]
        said = heads.vocabulary_heads[0](hidden).log_softmax(-1)[0] if own else log_p
        # The head at t speaks about the token of which the model says its distribution at t + 1.
        expected = (log_p[1:-1].exp() * (log_p[1:-1] - said[:-2])).sum()
        losses = HeadLosses(heads, KL(), decay=1.0)
        found = losses(lm, hidden, token_ids, torch.ones_like(token_ids, dtype=torch.bool))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Wilful(LlamaForCausalLM):
    """Its logits depend on what it has read, not on its last hidden states alone."""

    def forward(self, *args: Any, **given: Any) -> Any:
        output: Any = super().forward(*args, **given)
        if "input_ids" in given:
            read = nn.functional.one_hot(given["input_ids"], output.logits.shape[-1])
            output.logits = output.logits + read
        return output


@pytest.fixture
def wilful() -> PreTrainedModel:
    model = tiny_model("llama")
    model.__class__ = Wilful
    return model


def test_a_model_that_makes_its_logits_of_more_than_states_carries_no_heads(
    wilful: PreTrainedModel,
) -> None:
    differ = states_differ(wilful)
    assert differ is not None
    assert "relative difference" in differ
    lm = HFCausalLM(wilful, states_differ=differ)
    expected = r"^verifier\.path: llama decodes, but can neither carry heads nor teach: its logits"
    with pytest.raises(UserError, match=expected) as caught:
        Medusa(MedusaHeads(32, 61, 2), lm, Chain(2))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=expected):
        VerifierStates(lm, "nowhere", "nowhere")

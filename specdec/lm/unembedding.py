"""From the last hidden states to a model's own logits: scaling, soft caps and all.

Many families do something between the vocabulary head and the logits (granite and cohere scale
them, gemma2 and gemma3 cap them, bert transforms the states), each in its own code. So that code
runs here, on a model of which all below the vocabulary head is replaced by states that are given.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.lm.decoder_states import GivenStates, of_encoder, with_other
from specdec.lm.placement import device_of, is_spread


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:  # [..., H] -> [..., V]
    """Return what a model says where these are the last hidden states, as the base model returns.

    `specdec.lm.check` proves for each model that is loaded that this is what it does.
    """
    return Unembedding(model)(states)


class Unembedding:
    """What a model does behind its last hidden states, with the parts that it has now.

    Of tensors alone, so that compilers can read it.
    """

    def __init__(self, model: PreTrainedModel):
        head = model.get_output_embeddings()
        assert head is not None
        self._dtype = head.weight.dtype
        self._has_encoder = bool(model.config.is_encoder_decoder)
        self._above: Any
        if self._has_encoder:
            self._above = with_other(model, model.get_decoder(), GivenStates())
            return
        self._above = copy.copy(model)  # the same weights
        self._above._modules = {**model._modules, model.base_model_prefix: _Below(model)}
        if is_spread(model):  # the forward that accelerate put there is the whole model's
            del self._above.forward

    def __call__(self, states: Tensor) -> Tensor:  # [..., H] -> [..., V]
        """Return the logits; see `logits_of`."""
        given = states.reshape(1, -1, states.shape[-1]).to(self._dtype)
        said = of_encoder(given) if self._has_encoder else {"inputs_embeds": given}
        logits: Tensor = self._above(**said, use_cache=False).logits
        return logits.reshape(*states.shape[:-1], logits.shape[-1])


def trained_above(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return the weights between last hidden states and logits that are trained."""
    parts = [part for name, part in model.named_children() if name != model.base_model_prefix]
    if model.config.is_encoder_decoder:
        head = model.get_output_embeddings()
        assert head is not None
        parts = [head]
    weights = (weight for part in parts for weight in part.parameters() if weight.requires_grad)
    return list({id(weight): weight for weight in weights}.values())


@torch.no_grad()
def slope(model: PreTrainedModel) -> Tensor:  # [V, H]
    """Return d logits / d states at zero: a linear head that says what the model's own does.

    Equal to the vocabulary head's weight where nothing is done to its logits; a bias is left out.
    """
    head = model.get_output_embeddings()
    assert head is not None
    directions = torch.eye(head.weight.shape[1], dtype=head.weight.dtype, device=device_of(model))
    jvp: Any = torch.func.jvp  # typed as if it always returned three things
    zeros = torch.zeros_like(directions)
    _, found = jvp(lambda states: logits_of(model, states), (zeros,), (directions,))
    return found.T.contiguous()


class _Below(nn.Module):
    """Stands in for the model below the vocabulary head, and for the decoder within that."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        # Not registered: as a part of this it would be moved, searched and counted twice.
        self.__dict__.update(_base=model.base_model, _decoder=model.get_decoder())

    def __getattr__(self, name: str) -> Any:
        """All else is as in the true one: factors of the logits may be kept there."""
        found = getattr(self.__dict__["_base"], name)
        return self if found is self.__dict__["_decoder"] else found

    def forward(self, *args: object, inputs_embeds: Tensor, **kwargs: object) -> "_Output":
        """Return what is given for embeddings, as if that were the last states."""
        return _Output(inputs_embeds)


class _Output:
    """What a base model returns, of which only the states are there."""

    def __init__(self, states: Tensor):
        self.last_hidden_state = states

    def __getattr__(self, name: str) -> None:
        """Caches, attentions, ..."""
        return

    def __getitem__(self, index: int | slice) -> Any:
        """As of a tuple."""
        return (self.last_hidden_state,)[index]

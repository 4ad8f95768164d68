"""From the last hidden states of a decoder with an encoder to the model's own logits.

T5 scales states, Bart adds a bias to logits, each in its own code. So that code runs here, on a
model of which encoder and decoder are replaced by what is given; see `specdec.lm.unembedding`.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions


def decoder_logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:  # [..., H] -> [..., V]
    """Return what a model says where these are its decoder's last hidden states."""
    head = model.get_output_embeddings()
    assert head is not None
    given = states.reshape(1, -1, states.shape[-1]).to(head.weight.dtype)
    above: Any = _with(model, model.get_decoder(), _Given())
    output = above(
        encoder_outputs=BaseModelOutput(last_hidden_state=torch.zeros_like(given[:, :1])),
        decoder_inputs_embeds=given,
        use_cache=False,
    )
    return output.logits.reshape(*states.shape[:-1], output.logits.shape[-1])


def _with(module: nn.Module, part: nn.Module, other: nn.Module) -> nn.Module:
    """Return a copy of a module, with the same weights, that has `other` in place of a part."""
    (name,) = (name for name, each in module.named_modules() if each is part)
    child, found = name.partition(".")[0], copy.copy(module)
    inner: Any = module._modules[child]
    found._modules = {
        **module._modules,
        child: other if inner is part else _with(inner, part, other),
    }
    return found


class _Given(nn.Module):
    """Stands in for a decoder, and returns what it is given for embeddings."""

    def forward(
        self, *args: object, inputs_embeds: Tensor, **kwargs: object
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Return the states as if the last layer had."""
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)

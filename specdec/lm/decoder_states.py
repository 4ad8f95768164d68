"""What runs above a decoder that has an encoder beside it; see `specdec.lm.unembedding`.

T5 scales states, Bart adds a bias to logits, each in its own code. So that code runs, on a model of
which the decoder is replaced by states that are given, and the encoder is not asked.
"""

import copy
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions


def of_encoder(states: Tensor) -> dict[str, Any]:  # [1, n, H]
    """Return what a model is asked, so that its decoder gets the states."""
    source = BaseModelOutput(last_hidden_state=states[:, :1])  # which nobody looks at
    return {"encoder_outputs": source, "decoder_inputs_embeds": states}


def with_other(module: nn.Module, part: nn.Module, other: nn.Module) -> nn.Module:
    """Return a copy of a module, with the same weights, that has `other` in place of a part."""
    (name,) = (name for name, each in module.named_modules() if each is part)
    child, found = name.partition(".")[0], copy.copy(module)
    inner: Any = module._modules[child]
    replaced = other if inner is part else with_other(inner, part, other)
    found._modules = {**module._modules, child: replaced}
    return found


class GivenStates(nn.Module):
    """Stands in for a decoder, and returns what it is given for embeddings."""

    def forward(
        self, *args: object, inputs_embeds: Tensor, **kwargs: object
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Return the states as if the last layer had."""
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)

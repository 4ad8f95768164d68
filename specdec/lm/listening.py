"""Hidden states of the layers that are asked for, and of no others, while a model reads."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.core.values import FINAL, Layer
from specdec.lm.layer_split import decoder_layers


@contextmanager
def heard(model: PreTrainedModel, layers: Sequence[Layer]) -> Iterator[dict[Layer, Tensor]]:
    """Yield what will hold each layer's states [B, M, H] once the model has read.

    Transformers keeps all layers' states where any is asked for, a whole prompt's included.
    """
    found: dict[Layer, Tensor] = {}

    def hear(layer: Layer, module: nn.Module) -> Any:
        def note(module: nn.Module, given: object, returned: Any) -> None:
            if layer == FINAL:
                found[layer] = returned.last_hidden_state
            else:  # some layers return more beside their states
                found[layer] = returned[0] if isinstance(returned, tuple) else returned

        return module.register_forward_hook(note)

    hooks = [hear(layer, _module(model, layer)) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _module(model: PreTrainedModel, layer: Layer) -> nn.Module:
    """Return what computes a layer's states; the last ones stand behind the decoder's norm."""
    if isinstance(layer, int):
        layers = decoder_layers(model)
        assert 0 <= layer < len(layers) - 1, f"layer {layer} of {len(layers)}; the last is `final`"
        return layers[layer]
    assert layer == FINAL, layer
    decoder = model.get_decoder()
    return model.base_model if decoder is model else decoder

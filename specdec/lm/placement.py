"""Where the weights of a model lie: on one device, or over several by accelerate's device map.

Of a model that is spread, each layer's weights, keys and values lie on that layer's device (those
that are offloaded are brought to a device for each forward). accelerate moves what layers hand to
each other. Texts go in, and logits and hidden states come out, where the vocabulary head is: heads
and draft models are placed there, too.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.core.errors import UserError
from specdec.lm.devices import checked_device
from specdec.lm.quantization import BNB_8BIT, INT8
from specdec.runtime.choice import AUTO, EAGER

SPREAD = "auto"  # the device that stands for all that there are
DEVICE_MAP = "auto"  # what accelerate is asked for: layers over all GPUs alike, what is left on CPU


@dataclass(frozen=True)
class Placement:
    """Where a model is loaded to."""

    device: torch.device  # where it lies, or where most of its layers do
    is_spread: bool = False

    @classmethod
    def of(cls, device: str) -> "Placement":
        """Read the option `device`.

        Raises:
            UserError: it is not there.
        """
        return cls(checked_device(device), device == SPREAD)

    def arguments(self, rounds: bool) -> dict[str, Any]:
        """Return what transformers is told when it loads weights, which it may round there."""
        if self.is_spread:
            return {"device_map": DEVICE_MAP}
        return {"device_map": {"": str(self.device)}} if rounds else {}

    def placed(self, model: PreTrainedModel) -> None:
        """Move a model that was just loaded, unless it was loaded to where it belongs."""
        if not self.is_spread and not is_rounded(model):
            torch.nn.Module.to(model, self.device)  # typed, unlike the method of transformers


def require_spreadable(
    device: str, runtime: str, adapter: str | None, quantization: str | None = None
) -> None:
    """Refuse what a model over several devices cannot be asked for.

    Raises:
        UserError: it is a runtime with programs, an adapter, or one of several processes.
    """
    if device != SPREAD:
        return
    if runtime not in (EAGER, AUTO):
        raise UserError(
            f"device={device!r}: layers on several devices are run by runtime={EAGER} alone,"
            f" not by {runtime!r}"
        )
    if adapter is not None:
        raise UserError(
            f"device={device!r}: an adapter is merged on one device; expected cpu or cuda, or a"
            " model that it has been merged into"
        )
    if quantization == INT8:
        raise UserError(
            f"device={device!r}: weights are rounded to {INT8} on one device; expected"
            f" quantization={BNB_8BIT}, or null"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"device={device!r}: one process spreads a model over all devices; start it without"
            " torchrun or accelerate launch, or expected cpu or cuda"
        )


def is_spread(model: nn.Module) -> bool:
    """Whether accelerate's hooks move what goes in and out of a model's layers."""
    return hasattr(model, "_hf_hook")


def is_rounded(model: nn.Module) -> bool:
    """Whether transformers loaded it with weights of fewer bits, which stay where they are."""
    return getattr(model, "hf_quantizer", None) is not None


def device_of(model: PreTrainedModel) -> torch.device:
    """Return where a model's texts go in, and its logits and last hidden states come out."""
    head = model.get_output_embeddings()
    return _runs_on(model if head is None else head) or _runs_on(model) or model.device


def entry_of(model: PreTrainedModel) -> torch.device:
    """Return where the parts of a model that lie below its vocabulary head are handed their texts.

    accelerate brings them there where the whole model is called, and nowhere else.
    """
    return _runs_on(model) or model.device


def _runs_on(module: nn.Module) -> torch.device | None:
    found: Any = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return None if found is None else torch.device(found)


def moved(value: Any, device: torch.device) -> Any:
    """Return a tensor, or a mapping of tensors and of nothing, on a device."""
    if isinstance(value, Mapping):
        return {name: moved(each, device) for name, each in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def tensors_of(model: PreTrainedModel) -> Iterator[Tensor]:
    """Yield weights and saved buffers, tied ones once; each is there until the next is asked for.

    So that of those that are offloaded only one layer's are in memory at a time.
    """
    if not is_spread(model):
        state = model.state_dict(keep_vars=True)
        yield from {id(tensor): tensor for tensor in state.values()}.values()
        return
    from accelerate.utils import align_module_device

    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for at, module in model.named_modules():
        with align_module_device(module, torch.device("cpu")):
            for name, tensor in module.state_dict(keep_vars=True).items():
                if "." not in name and f"{at}.{name}".lstrip(".") not in tied:
                    yield tensor

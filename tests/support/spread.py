"""Models spread over devices: memory and disk in truth, two GPUs as far as places go."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate.hooks
import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

# Devices of which this machine has none. The type must be one that an installed torch has guards
# for, which on a CPU is not cuda.
FIRST, SECOND = "lazy:0", "lazy:1"


def two_parts(model: nn.Module, first: str, second: str) -> dict[str, str]:
    """Map the first half of the layers to one place, the rest and the head to another."""
    found: dict[str, str] = {}
    base: str = model.base_model_prefix  # pyright: ignore[reportAssignmentType]
    for name, child in getattr(model, base).named_children():
        if isinstance(child, nn.ModuleList):
            half = len(child) // 2
            found |= {
                f"{base}.{name}.{n}": first if n < half else second for n in range(len(child))
            }
        else:
            tied = model.config.tie_word_embeddings  # pyright: ignore
            early = isinstance(child, nn.Embedding) and not tied
            found[f"{base}.{name}"] = first if early else second
    return {**found, **{name: second for name, _ in model.named_children() if name != base}}


def spread(
    model: PreTrainedModel, device_map: Mapping[str, str], folder: Path | None = None
) -> Any:
    """Let accelerate spread a model, as transformers does when it loads one."""
    skipped: Any = model._skip_keys_device_placement
    return dispatch_model(model, {**device_map}, offload_dir=folder, skip_keys=skipped)


@contextmanager
def two_devices(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute shapes, types and devices alone: tensors of unlike devices must not meet."""
    # What torch makes of constants, and accelerate of parameters, would be real tensors.
    for module in ("specdec.core.on_device", "specdec.lm.mask"):
        patch.setattr(f"{module}.sent", _zeros_on)
    patch.setattr(accelerate.hooks, "set_module_tensor_to_device", _put)
    patch.setattr(torch, "is_autocast_enabled", lambda *device_type: False)  # nobody knows of lazy
    with FakeTensorMode(allow_non_fake_inputs=True), _Indexing(), torch.no_grad():
        yield


def _zeros_on(values: Tensor, device: torch.device) -> Tensor:
    return torch.zeros(values.shape, dtype=values.dtype, device=device)


def _put(module: nn.Module, name: str, device: str, **others: object) -> None:
    at, _, own = name.rpartition(".")
    there = module.get_submodule(at)
    parameter = there._parameters.get(own)
    if parameter is not None:
        there._parameters[own] = nn.Parameter(parameter.to(device), requires_grad=False)
    else:
        buffer = there._buffers[own]
        assert buffer is not None
        there._buffers[own] = buffer.to(device)


class _Indexing(TorchFunctionMode):
    """An index must lie beside what it indexes, or on the host; fake tensors do not look."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            for each in index:
                if isinstance(each, Tensor) and each.device != args[0].device:
                    assert each.device.type == "cpu", f"{each.device} indexes {args[0].device}"
        return func(*args, **(kwargs or {}))

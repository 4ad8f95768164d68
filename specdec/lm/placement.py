"""Where the weights of a model lie: on one device, or over several by accelerate's device map.

Of a model that is spread, each layer's weights, keys and values lie on that layer's device (those
that are offloaded are brought to a device for each forward). accelerate moves what layers hand to
each other. Texts go in, and logits and hidden states come out, where the vocabulary head is: heads
and draft models are placed there, too.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from specdec.core.errors import UserError, require
from specdec.lm.devices import checked_device
from specdec.lm.quantization import BNB_8BIT, INT8
from specdec.runtime.choice import AUTO, EAGER

V = TypeVar("V")
SPREAD = "auto"  # the device that stands for all that there are
TP_PLAN = "auto"  # transformers' own for a model
DEVICE_MAP = "auto"  # what accelerate is asked for: layers over all GPUs alike, what is left on CPU


@dataclass(frozen=True)
class Placement:
    """Where a model is loaded to."""

    device: torch.device  # where it lies, or where most of its layers do
    is_spread: bool = False
    num_shards: int = 1  # processes that hold a part of each weight: tensor parallelism

    @classmethod
    def of(cls, device: str, tp_plan: str | None = None) -> "Placement":
        """Read the options `device` and `tp_plan`.

        Raises:
            UserError: the device is not there.
        """
        return cls(checked_device(device), device == SPREAD, 1 if tp_plan is None else _world())

    def arguments(self, rounds: bool) -> dict[str, Any]:
        """Return what transformers is told when it loads weights, which it may round there."""
        if self.is_spread:
            return {"device_map": DEVICE_MAP}
        if self.num_shards > 1:
            return {"distributed_config": _tensor_parallel(self.num_shards)}
        return {"device_map": {"": str(self.device)}} if rounds else {}

    def placed(self, model: PreTrainedModel) -> None:
        """Move a model that was just loaded, unless it was loaded to where it belongs."""
        if not self.is_spread and self.num_shards == 1 and not is_rounded(model):
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
    if _world() > 1:
        raise UserError(
            f"device={device!r}: one process spreads a model over all devices; start it without"
            " torchrun or accelerate launch, or expected cpu or cuda"
        )


def require_shardable(
    tp_plan: object,
    config: PreTrainedConfig,
    device: str,
    runtime: str,
    field: str,
    others: Mapping[str, object],
) -> None:
    """Refuse tensor parallelism where it cannot be had, or with what goes with whole weights alone.

    Args:
        tp_plan: auto: as transformers plans it for the model; None: there is none.
        config: the model's.
        device: where it runs.
        runtime: how steps are run.
        field: the option, with which messages begin.
        others: options that need whole weights, by name; None where one is not used.

    Raises:
        UserError: the option, or what stands beside it, is wrong.
    """
    if tp_plan is None:
        return
    require(tp_plan == TP_PLAN, field, tp_plan, f"{TP_PLAN}, or null")
    given = [name for name, value in {"device": device}.items() if value == SPREAD]
    given += [name for name, value in others.items() if value is not None]
    if given:
        raise UserError(f"{field}={tp_plan!r}: splits each weight, and does not go with {given[0]}")
    if runtime not in (EAGER, AUTO):
        raise UserError(f"{field}={tp_plan!r}: run by runtime={EAGER} alone, not by {runtime!r}")
    if _world() == 1:
        raise UserError(
            f"{field}={tp_plan!r}: needs several processes, torchrun --nproc-per-node=2 -m specdec"
        )
    if checked_device(device).type == "cpu" and torch.cuda.is_available():
        raise UserError(f"{field}={tp_plan!r}: takes the GPUs that are there; expected device=cuda")
    if _tensor_parallel(_world()) is None:
        raise UserError(f"{field}={tp_plan!r}: needs a newer version of transformers, 5.24")
    _require_divisible(config, _world(), f"{field}={tp_plan!r}")


def _require_divisible(config: PreTrainedConfig, number: int, what: str) -> None:
    text: Any = config.get_text_config()
    if not getattr(text, "base_model_tp_plan", None):
        raise UserError(f"{what}: transformers has no plan for {text.model_type}")
    heads = text.num_attention_heads
    for count in (heads, getattr(text, "num_key_value_heads", None) or heads):
        if count % number:
            raise UserError(f"{what}: {number} processes cannot share {count} attention heads")


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _tensor_parallel(number: int) -> Any:
    """Return what tells transformers of so many processes; None: it is too old for that."""
    try:
        from transformers.distributed.configuration_utils import DistributedConfig
    except ImportError:
        return None
    if "tp_size" not in signature(DistributedConfig).parameters:
        return None
    return DistributedConfig(tp_size=number)


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of its weights."""
    return getattr(model, "_tp_size", None) not in (None, 1)


def is_whole(model: nn.Module) -> bool:
    """Whether its weights lie on one device, in one process, and are not rounded by transformers.

    Only such a model can be moved, copied and compiled.
    """
    return not (is_spread(model) or is_sharded(model) or is_rounded(model))


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


def moved(value: V, device: torch.device) -> V:
    """Return a tensor, or a mapping of tensors and of nothing, on a device."""
    found: Any = value
    if isinstance(value, Mapping):
        found = {name: moved(each, device) for name, each in value.items()}
    elif isinstance(value, Tensor):
        found = value.to(device)
    return found


def tensors_of(model: PreTrainedModel) -> Iterator[Tensor]:
    """Yield weights and saved buffers, tied ones once; each is there until the next is asked for.

    So that of those that are offloaded only one layer's are in memory at a time.
    """
    if not is_spread(model):  # of what is sharded every process must ask for the same, in order
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

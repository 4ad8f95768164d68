"""LoRA adapters that peft saved, merged into a model's weights when these are loaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from specdec.core.errors import UserError, first_line, require
from specdec.lm.checkpoint import source

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EXPECTED = f"a folder with {CONFIG} and {WEIGHTS}, as peft saves LoRA adapters"


def require_adapter(folder: object, field: str) -> None:
    """Refuse what is no folder of LoRA weights, before any weights are read.

    Raises:
        UserError: it is none, or peft is not installed; `field` begins the message.
    """
    there = isinstance(folder, str) and all((Path(folder) / n).is_file() for n in (CONFIG, WEIGHTS))
    require(there, field, folder, EXPECTED)
    assert isinstance(folder, str)
    try:
        found: Any = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"{field}={folder!r}: {CONFIG} is damaged ({reason})") from None
    kind = found.get("peft_type") if isinstance(found, Mapping) else None
    if kind != "LORA":
        raise UserError(f"{field}={folder!r}: holds {kind}; expected LORA, which can be merged")
    _peft(f"{field}={folder!r}")


def adapter_note(folder: str, path: str, field: str) -> str | None:
    """Say that an adapter names another model than the one at `path` as its base.

    Shapes alone would let it be merged. A model may lie elsewhere under the same name.
    """
    found = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    base = found.get("base_model_name_or_path")
    if not isinstance(base, str) or not base or _last(base) == _last(path):
        return None
    return f"note: {field}={folder}: was trained on {base!r}, and is merged into {path!r}"


def _last(path: str) -> str:
    return Path(source(path)).resolve().name.lower()


def merged(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """Return the model with an adapter in its weights; the one that is given is used up.

    Raises:
        UserError: it was made for another model.
    """
    peft = _peft(f"adapter {folder!r}")
    try:
        there = load_file(Path(folder) / WEIGHTS).keys()
        adapted = peft.PeftModel.from_pretrained(model, folder)
        used = peft.get_peft_model_state_dict(adapted).keys()
    except (KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise UserError(f"the adapter {folder!r} does not fit ({first_line(error)})") from None
    if there != used:  # what is missing would do nothing, and nobody would know
        raise UserError(
            f"the adapter {folder!r} does not fit ({len(there ^ used)} of its {len(there)} weights"
            " are for other layers)"
        )
    return adapted.merge_and_unload()


def _peft(wanted_by: str) -> Any:
    try:
        import peft
    except ImportError:
        raise UserError(
            f"{wanted_by}: needs the package peft; pip install 'specdec-lab[joint]'"
        ) from None
    return peft

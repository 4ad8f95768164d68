"""What a folder holds: a language model, heads for one, or something else altogether."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.core.errors import UserError
from specdec.zoo import ZOO_FOLDER

OF_HEADS = {"hidden_size", "vocab_size"}
FOREIGN = ("medusa", "eagle", "hydra", "speculators")  # how options of other frameworks begin


@dataclass(frozen=True)
class Content:
    """What lies beside a `config.json`, and what can be done with it."""

    description: str
    heads: str | None = None  # the class of heads


MODEL = Content("this is a language model; it drafts with proposer=draft_model draft.path=...")
OF_OTHERS = Content("these are heads of another framework, which are not read; train them here")
UNKNOWN = Content("this is something else; specdec-train writes such folders")


def content_of(path: str) -> Content | None:
    """Tell by its `config.json` what a folder holds; None for what is no folder here, or has none.

    Raises:
        UserError: `config.json` is damaged.
    """
    name = path.removeprefix("zoo:")
    file = (Path(path) if name == path else ZOO_FOLDER / name) / "config.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"config.json is damaged ({error}); make or fetch it again") from None
    if not isinstance(found, dict):
        raise UserError(f"config.json is damaged: {type(found).__name__} in place of an object")
    return _told_by(found)


def _told_by(config: Mapping[str, Any]) -> Content:
    if any(str(name).lower().startswith(FOREIGN) for name in config):
        return OF_OTHERS
    if "model_type" in config:
        return MODEL
    kind = config.get("kind")
    if config.keys() >= OF_HEADS and isinstance(kind, str):
        return Content(f"these are {kind}; use proposer={proposer_of(kind)}", kind)
    return UNKNOWN


def proposer_of(kind: str) -> str:
    """Return what the proposer of a class of heads is called: `early_exit` of `EarlyExitHead`."""
    name = re.sub(r"Heads?$", "", kind)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()

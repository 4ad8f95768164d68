"""The options of a run as its directory keeps them: `config.yaml`, all of them, resolved."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from specdec.core.errors import UserError


class _Dumper(yaml.SafeDumper):
    """Writes a text that looks like a number in quotes, whatever YAML calls a number."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    quote = "'" if _looks_like_a_number(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=quote)


def _looks_like_a_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


_Dumper.add_representer(str, _text)


def to_yaml(options: Mapping[str, Any]) -> str:
    """Write options as YAML, in their order."""
    return yaml.dump(
        dict(options), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False
    )


def read_options(folder: Path, name: str = "config.yaml") -> dict[str, Any]:
    """Read the options of a run.

    Raises:
        UserError: there is no such file, it is damaged, or it holds something else.
    """
    file = folder / name
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{folder}: no {name} in that folder") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{file}: damaged ({error})".replace("\n", " ")) from None
    if not isinstance(found, dict) or "sampling" not in found:
        raise UserError(f"{file}: not the options of a run")
    return found

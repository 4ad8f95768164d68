"""What stands beside a computed file, so that it is never taken for that of other settings."""

import json
from collections.abc import Mapping
from pathlib import Path

from specdec.core.digest import digest
from specdec.core.errors import UserError


def file_digest(path: str, field: str) -> str:
    """Return the digest of a file.

    Raises:
        UserError: it cannot be read; `field` is how the message names it.
    """
    try:
        return digest(Path(path))
    except OSError as error:
        raise UserError(f"{field}={path!r}: cannot be read ({error.strerror})") from None


def differences(theirs: Mapping[str, object], ours: Mapping[str, object]) -> list[str]:
    """Return the names of our values that a manifest has not, or has otherwise."""
    plain = json.loads(json.dumps(ours))
    return [name for name in plain if name not in theirs or theirs[name] != plain[name]]

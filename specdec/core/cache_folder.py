"""Where things are kept that can be made again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return a folder of the user's cache; it need not be there, nor be writable."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "specdec" / name

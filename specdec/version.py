"""Which version this is, and of what it depends on; fast, since `--version` should not wait."""

from importlib.metadata import PackageNotFoundError, version

VERSION = "0.2.0"
WITH = ("torch", "transformers", "hydra-core")


def version_line() -> str:
    """Return `specdec-lab 0.2.0 (torch ..., transformers ...)`, without importing any of them."""
    others = ", ".join(f"{name} {_installed(name)}" for name in WITH)
    return f"specdec-lab {VERSION} ({others})"


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"

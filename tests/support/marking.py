"""Parameters of tests that `make test` leaves to `make test-all`."""

from typing import Any

import pytest


def thorough(*values: Any, id: str | None = None) -> Any:
    """Mark the values of one case: it takes long, and others prove much the same."""
    return pytest.param(*values, marks=pytest.mark.thorough, id=id)

"""The card of a folder of heads."""

from typing import Any

import pytest

from specdec.proposer.medusa import MedusaHeads


@pytest.mark.parametrize(
    ("path", "on_hub"), [("org/model", True), ("/models/mine", False), ("zoo:verifier", False)]
)
def test_the_hub_is_told_the_base_model(path: str, on_hub: bool) -> None:
    heads = MedusaHeads(8, 12, 2, 1, False, verifier={"path": path})
    data: Any = heads.generate_model_card().data
    assert data.get("base_model") == (path if on_hub else None)

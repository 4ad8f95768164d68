"""What tests of runtimes may take for granted."""

from collections.abc import Iterator

import pytest
import torch

from tests.support.uncompiled import uncompiled_steps


@pytest.fixture(name="uncompiled")
def run_programs_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec.lm.hf.steps_of", uncompiled_steps)


@pytest.fixture(name="without_gradients")
def infer() -> Iterator[None]:
    with torch.inference_mode():
        yield

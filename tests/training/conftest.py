"""What trainings begin with: a verifier, its states, and an objective on a small text."""

from pathlib import Path
from typing import Any

import pytest

from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.lm import LanguageModeling
from tests.support.building import HELD_OUT, LEARNT, Build
from tests.support.running import Tiny


@pytest.fixture(autouse=True)
def _accelerator(fresh_accelerator: None) -> None:
    """Let every test begin with accelerate's process-wide state empty."""


@pytest.fixture
def verifier(tiny: Tiny) -> HFCausalLM:
    return load(str(tiny.verifier))


@pytest.fixture
def states(verifier: HFCausalLM, tiny: Tiny) -> VerifierStates:
    states = VerifierStates(verifier, str(tiny.text), str(tiny.text), max_length=24)
    states.prepare()
    return states


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Build the objective anew, as a new process would: same data, same seed."""
    learnt, held_out = tmp_path / "learnt.txt", tmp_path / "held_out.txt"
    learnt.write_text(LEARNT, encoding="utf-8")
    held_out.write_text(HELD_OUT, encoding="utf-8")

    def build(kind: type[LanguageModeling] = LanguageModeling, **options: Any) -> LanguageModeling:
        small = {
            "data_path": str(learnt),
            "held_out_path": str(held_out),
            "block_length": 16,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "vocab_size": 280,
        }
        objective = kind(**(small | options))
        objective.prepare()
        return objective

    return build

"""A text that a tiny model learns in a few steps, and the objective on it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load
from specdec.training.data.states import VerifierStates
from specdec.training.lm import LanguageModeling

Build = Callable[..., LanguageModeling]
LEARNT = "the cat sat on the mat and the dog sat on the log. " * 60
HELD_OUT = "the dog sat on the mat and the cat sat on the log. " * 8


@pytest.fixture(autouse=True)
def _accelerator(fresh_accelerator: None) -> None:
    """Let every test begin with accelerate's process-wide state empty."""


@pytest.fixture
def verifier(tiny) -> HFCausalLM:
    return load(str(tiny.verifier))


@pytest.fixture
def states(verifier, tiny) -> VerifierStates:
    return VerifierStates(verifier, str(tiny.text), str(tiny.text), max_length=24)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Build the objective anew, as a new process would: same data, same seed."""
    learnt, held_out = tmp_path / "learnt.txt", tmp_path / "held_out.txt"
    learnt.write_text(LEARNT, encoding="utf-8")
    held_out.write_text(HELD_OUT, encoding="utf-8")

    def build(kind: type[LanguageModeling] = LanguageModeling, **options) -> LanguageModeling:
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
        return kind(**(small | options))

    return build

"""A verifier's states in another runtime or type: the same heads come of them, up to rounding."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec.core.sampling import Sampling
from specdec.lm.load import load
from specdec.runtime.agreement import relative_difference
from specdec.runtime.compiled_texts import CompiledTexts
from specdec.training.acceptance import Acceptance
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.loss.kl import KL
from specdec.training.medusa import MedusaTraining
from specdec.training.trainer import Trainer
from specdec.tree.chain import Chain
from tests.support.running import Tiny

ACCEPTANCE = Acceptance(Chain(2), Sampling(0), num_prompts=1, max_new_tokens=4)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let torch run what the compiler read, without C++; returns the programs that were made."""
    made: list[Any] = []

    @lru_cache
    def texts_of(name: str, model: Any) -> CompiledTexts | None:
        if name != "compiled":
            return None
        made.append(CompiledTexts(model, name, backend="aot_eager"))
        return made[-1]

    monkeypatch.setattr("specdec.training.data.verifier_states.texts_of", texts_of)
    return made


def trained(tiny: Tiny, output: Path, **how: Any) -> tuple[MedusaTraining, dict[str, float]]:
    verifier = load(str(tiny.verifier), **how)
    text = str(tiny.text)
    states = VerifierStates(verifier, text, text, 16, 2, cache_path=str(output / "states"))
    heads = MedusaTraining(states, KL(), ACCEPTANCE, num_heads=2)
    trainer = Trainer(max_steps=4, per_device_train_batch_size=3, save_steps=4, eval_steps=4)
    return heads, trainer.fit(heads, output)


def weights(heads: MedusaTraining) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in heads.module.parameters()])


@pytest.mark.thorough
def test_a_compiled_verifier_trains_the_same_heads(
    tiny: Tiny, tmp_path: Path, programs: list[Any]
) -> None:
    eager, measured = trained(tiny, tmp_path / "eager")
    assert not programs
    compiled, found = trained(tiny, tmp_path / "compiled", runtime="compiled")
    assert len(programs) == 1
    assert programs[0]._seen, "texts were not read by the program"
    assert relative_difference(weights(compiled), weights(eager)) < 1e-4
    assert found == pytest.approx(measured, abs=1e-3)


def test_a_verifier_in_half_precision_trains_nearly_the_same_heads(
    tiny: Tiny, tmp_path: Path
) -> None:
    single, _ = trained(tiny, tmp_path / "single")
    half, found = trained(tiny, tmp_path / "half", dtype="bfloat16")
    assert half.states.verifier.model.dtype == torch.bfloat16
    assert {weight.dtype for weight in half.module.parameters()} == {torch.float32}
    started = MedusaTraining(single.states, KL(), ACCEPTANCE, num_heads=2)
    started.prepare()
    learnt = weights(single) - weights(started)
    # Heads begin with the verifier's vocabulary head, whose rounding they keep.
    begun = MedusaTraining(half.states, KL(), ACCEPTANCE, num_heads=2)
    begun.prepare()
    assert relative_difference(weights(half) - weights(begun), learnt) < 0.3
    assert all(value == value for value in found.values())

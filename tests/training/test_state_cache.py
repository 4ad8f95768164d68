"""Hidden states on disk: the same numbers, computed once, and never those of something else."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.lm.load import load
from specdec.training.acceptance import Acceptance
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.loss.kl import KL
from specdec.training.medusa import MedusaTraining
from specdec.training.objective import Batch
from specdec.training.trainer import Trainer
from specdec.tree.chain import Chain
from tests.support.running import Tiny

LENGTH = 16


def states(tiny: Tiny, cache: Path | None, path: str = "verifier", length: int = LENGTH):
    verifier = load(str(getattr(tiny, path)))
    text = str(tiny.text)
    cache_path = None if cache is None else str(cache)
    found = VerifierStates(verifier, text, text, length, eval_samples=2, cache_path=cache_path)
    found.prepare()
    return found


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many samples the verifier reads."""
    seen: list[int] = []
    original = VerifierStates._run

    def counted(self: VerifierStates, batch: Batch) -> torch.Tensor:
        seen.append(len(batch.token_ids))
        return original(self, batch)

    monkeypatch.setattr(VerifierStates, "_run", counted)
    return seen


def test_each_sample_is_read_once_by_all_runs(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = states(tiny, None)
    expected = plain.hidden(plain.batch(0, 6))
    seen = count_runs(monkeypatch)
    first = states(tiny, tmp_path / "cache")
    torch.testing.assert_close(first.hidden(first.batch(0, 6)), expected)
    assert sum(seen) == 6
    torch.testing.assert_close(first.hidden(first.batch(0, 6)), expected)
    second = states(tiny, tmp_path / "cache")
    torch.testing.assert_close(second.hidden(second.batch(0, 6)), expected)
    assert sum(seen) == 6, "stored states were computed again"
    second.hidden(second.batch(4, 4))
    assert sum(seen) == 8


def test_held_out_samples_are_not_taken_for_training_samples(tiny: Tiny, tmp_path: Path) -> None:
    cached, plain = states(tiny, tmp_path / "cache"), states(tiny, None)
    cached.hidden(cached.batch(0, 8))
    assert not cached.held_out.places
    torch.testing.assert_close(cached.hidden(cached.held_out), plain.hidden(plain.held_out))


def test_heads_trained_from_the_cache_are_the_same(tiny: Tiny, tmp_path: Path) -> None:
    acceptance = Acceptance(Chain(2), Sampling(0), num_prompts=1, max_new_tokens=4)
    for name, cache in (
        ("live", None),
        ("fills", tmp_path / "cache"),
        ("full", tmp_path / "cache"),
    ):
        heads = MedusaTraining(states(tiny, cache), KL(), acceptance, num_heads=2)
        trainer = Trainer(max_steps=4, per_device_train_batch_size=2, save_steps=4)
        trainer.fit(heads, tmp_path / name)
    last = Path("checkpoints", "step-4", "model.safetensors")
    live, fills, full = (load_file(tmp_path / name / last) for name in ("live", "fills", "full"))
    assert all(torch.equal(live[name], fills[name]) for name in live)
    assert all(torch.equal(live[name], full[name]) for name in live)


def test_states_of_something_else_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    states(tiny, cache)
    with pytest.raises(UserError, match=r"^data\.cache_path=.*\(max_length, tokens differ\)"):
        states(tiny, cache, length=LENGTH + 1)
    with pytest.raises(UserError, match=r"^data\.cache_path=.*\(verifier differ\)"):
        states(tiny, cache, path="draft")


def test_a_disk_without_room_is_named_before_training(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UserError, match=r"no room for .* GB of hidden states"):
            states(tiny, tmp_path / "cache")
    states(tiny, tmp_path / "cache")  # once there is room


@pytest.mark.parametrize("damage", ["deleted", "cut", "a bit", "emptied"])
@pytest.mark.parametrize("name", ["states.bin", "sums.bin"])
def test_states_that_are_not_as_written_are_computed_again(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Zeros, and whatever else a crash leaves, would be trained on without a word."""
    cache = tmp_path / "cache"
    first = states(tiny, cache)
    expected = first.hidden(first.batch(0, 6)).clone()
    content = (cache / name).read_bytes()
    place = next(place for place in reversed(range(len(content))) if content[place])
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    half = content[: len(content) // 2]
    if damage == "deleted":
        (cache / name).unlink()
    else:
        (cache / name).write_bytes({"cut": half, "a bit": flipped, "emptied": b""}[damage])
    seen = count_runs(monkeypatch)
    again = states(tiny, cache)
    torch.testing.assert_close(again.hidden(again.batch(0, 6)), expected, rtol=0, atol=0)
    assert 0 < sum(seen) <= 6
    if damage == "a bit":
        assert sum(seen) == 1, "what was whole was computed again"
    warnings = [line for line in capsys.readouterr().out.splitlines() if "computed again" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{cache}: ")


@pytest.mark.parametrize("manifest", ["kept", "gone", "damaged"])
def test_states_of_another_verifier_in_the_same_place_are_not_believed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: str
) -> None:
    """Each of their checksums is right, and belongs to them."""
    for name in ("verifier", "draft"):
        made = states(tiny, tmp_path / name, path=name)
        made.hidden(made.batch(0, 6))
    ours, theirs = tmp_path / "verifier", tmp_path / "draft"
    first = states(tiny, ours)
    expected = first.hidden(first.batch(0, 6)).clone()
    sizes = [(each / "states.bin").stat().st_size for each in (ours, theirs)]
    assert sizes[0] == sizes[1], "the models have states of one size"
    for name in ("states.bin", "sums.bin"):
        (ours / name).write_bytes((theirs / name).read_bytes())
    if manifest != "kept":
        (ours / "manifest.json").write_text("{")
    if manifest == "gone":
        (ours / "manifest.json").unlink()
    seen = count_runs(monkeypatch)
    again = states(tiny, ours)
    assert torch.equal(again.hidden(again.batch(0, 6)), expected)
    assert sum(seen) == 6

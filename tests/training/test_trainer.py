"""The training loop: it learns, and an interrupted run ends exactly as an undisturbed one."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.load import load
from specdec.proposer.none import NoProposer
from specdec.training.lm import LanguageModeling
from specdec.training.objective import Batch
from specdec.training.trainer import Trainer
from specdec.verification.rejection import Rejection
from tests.support.building import Build

NUM_STEPS = 8


def trainer(**options: Any) -> Trainer:
    """Make a trainer that logs every step; options replace these."""
    small: dict[str, Any] = {
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "logging_steps": 1,
        "eval_steps": 4,
        "save_steps": 2,
    }
    return Trainer(**(small | options))


class Interrupted(LanguageModeling):
    """Ctrl-C while the batches of step 5 are read."""

    def batch(self, first: int, count: int) -> Batch:
        if first >= 5 * 4:
            raise KeyboardInterrupt
        return super().batch(first, count)


class Diverging(LanguageModeling):
    """The loss, and with it the weights, stop being numbers in step 4 (the fourth batch)."""

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        self.num_losses = getattr(self, "num_losses", 0) + module.training
        return super().loss(module, batch) * (math.nan if self.num_losses >= 4 else 1.0)


class DivergingGradient(LanguageModeling):
    """The loss of step 4 is a number, its gradient is not: that shows in the loss of step 5."""

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        self.num_losses = getattr(self, "num_losses", 0) + module.training
        loss = super().loss(module, batch)
        if self.num_losses != 4:
            return loss
        nothing = torch.stack([each.sum() for each in module.parameters()]).sum() * 0
        return loss + torch.sqrt(nothing)  # zero, and infinitely steep


@torch.no_grad()
def evaluate(objective: LanguageModeling) -> dict[str, float]:
    return objective.evaluate(objective.module.eval())


def weights(objective: LanguageModeling) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in objective.module.state_dict().items()}


def assert_identical(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    differing = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not differing, f"not bit-identical: {differing}"


def logged(output: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl without the speed, which no two runs share."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key != "tokens_per_second"} for row in rows]


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in logged(output) if "loss" in row]


def checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").glob("[!.]*"))


def interrupt(build: Build, output: Path, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(**options).fit(build(Interrupted), output)


# --- Learning ---


def test_the_loss_falls(build: Build, tmp_path: Path) -> None:
    objective = build()
    untrained = evaluate(objective)
    evaluation = trainer(max_steps=40).fit(objective, tmp_path / "out")
    curve = losses(tmp_path / "out")
    assert len(curve) == 40
    assert curve[0] == pytest.approx(math.log(280), rel=0.1), "an untrained model knows nothing"
    assert curve[-1] < 0.5 * curve[0], "nothing was learnt"
    assert evaluation["eval_loss"] < 0.5 * untrained["eval_loss"], "nothing that generalises"
    assert evaluation["eval_loss"] == logged(tmp_path / "out")[-1]["eval_loss"]


def test_bits_per_byte_divide_by_the_bytes_of_the_text(build: Build, tmp_path: Path) -> None:
    """The end-of-text token costs bits, but its name is not text."""
    held_out = tmp_path / "short.jsonl"
    texts = [f"the cat {number}. " for number in range(40)]
    held_out.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    objective = build(held_out_path=str(held_out), block_length=64)
    evaluation = evaluate(objective)
    num_tokens = sum(len(objective.tokenizer(text)["input_ids"]) + 1 for text in texts)
    num_blocks = math.ceil(num_tokens / 64)
    nats = evaluation["eval_loss"] * (num_tokens - num_blocks)
    num_bytes = nats / math.log(2) / evaluation["eval_bits_per_byte"]
    # The first token of each block is not scored, and is a few bytes.
    text_bytes = sum(map(len, texts))
    assert text_bytes - 12 * num_blocks <= num_bytes <= text_bytes, (
        f"{num_bytes:.0f} bytes counted in a text of {text_bytes}"
    )


def test_the_same_seed_gives_the_same_weights(build: Build, tmp_path: Path) -> None:
    found = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        objective = build(seed=seed)
        trainer(max_steps=2, seed=seed).fit(objective, tmp_path / name)
        found.append(weights(objective))
    assert_identical(found[1], found[0])
    assert any(not torch.equal(found[2][name], found[0][name]) for name in found[0])


def test_accumulated_batches_are_one_large_batch(build: Build, tmp_path: Path) -> None:
    trainer(max_steps=4).fit(build(), tmp_path / "whole")
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer(max_steps=4, **halves).fit(build(), tmp_path / "halves")
    assert losses(tmp_path / "halves") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def test_accumulated_gradients_are_those_of_one_large_batch(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW and clipping hide the scale, so that no loss shows it."""
    norms: list[float] = []

    def note(self: Accelerator, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        norms.append(float(nn.utils.clip_grad_norm_(parameters, max_norm)))
        return torch.tensor(norms[-1])

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", note)
    trainer(max_steps=1).fit(build(), tmp_path / "whole")
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer(max_steps=1, **halves).fit(build(), tmp_path / "halves")
    whole, accumulated = norms
    assert accumulated == pytest.approx(whole, rel=1e-4)


def test_the_learning_rate_rises_and_falls(build: Build, tmp_path: Path) -> None:
    trainer().fit(build(), tmp_path / "out")
    rates = [row["learning_rate"] for row in logged(tmp_path / "out") if "loss" in row]
    assert rates[:3] == pytest.approx([0, 5e-3, 1e-2]), "warm-up of two steps"
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 1e-3, "the cosine ends behind the last step"


# --- Interrupted and resumed ---


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_ends_like_an_undisturbed_one(
    build: Build, tmp_path: Path, accumulation: int
) -> None:
    options = {
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 4 // accumulation,
    }
    undisturbed = build()
    trainer(**options).fit(undisturbed, tmp_path / "whole")

    interrupt(build, tmp_path / "parts", **options)
    assert checkpoints(tmp_path / "parts") == ["step-2", "step-4"]
    resumed = build()
    evaluation = trainer(**options).fit(resumed, tmp_path / "parts")

    assert_identical(weights(resumed), weights(undisturbed))
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert evaluation["eval_loss"] == logged(tmp_path / "whole")[-1]["eval_loss"]
    saved = [load_file(tmp_path / name / "model.safetensors") for name in ("parts", "whole")]
    assert_identical(saved[0], saved[1])


def test_losses_between_two_logs_survive_an_interruption(build: Build, tmp_path: Path) -> None:
    """Saved at step 4, logged every 3 steps: the line of step 6 is the mean over steps 4 to 6."""
    trainer(logging_steps=3).fit(build(), tmp_path / "whole")
    interrupt(build, tmp_path / "parts", logging_steps=3)
    trainer(logging_steps=3).fit(build(), tmp_path / "parts")
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole"), "the log depends on the crash"


def test_a_resumed_log_has_no_step_twice(build: Build, tmp_path: Path) -> None:
    """The interrupted run had logged step 5, which the resumed one does again from step 4."""
    interrupt(build, tmp_path / "out")
    assert losses(tmp_path / "out"), "vacuous: the interrupted run logged nothing"
    assert logged(tmp_path / "out")[-1]["step"] == 5
    trainer().fit(build(), tmp_path / "out")
    lines = [(row["step"], "eval_loss" in row) for row in logged(tmp_path / "out")]
    assert len(lines) == len(set(lines)), f"logged twice: {lines}"
    assert [step for step, evaluated in lines if not evaluated] == list(range(1, NUM_STEPS + 1))


def test_a_named_checkpoint_can_be_resumed_from(build: Build, tmp_path: Path) -> None:
    undisturbed = build()
    trainer().fit(undisturbed, tmp_path / "whole")
    interrupt(build, tmp_path / "first")
    resumed = build()
    source = str(tmp_path / "first" / "checkpoints" / "step-2")
    trainer(resume_from_checkpoint=source).fit(resumed, tmp_path / "second")
    assert_identical(weights(resumed), weights(undisturbed))


@pytest.mark.parametrize("damage", ["truncated", "empty", "overwritten", "a bit", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    undisturbed = build()
    trainer().fit(undisturbed, tmp_path / "whole")
    output = tmp_path / "out"
    interrupt(build, output)
    newest = output / "checkpoints" / checkpoints(output)[-1]
    for file in [path for path in newest.iterdir() if path.suffix in (".safetensors", ".bin")]:
        content = file.read_bytes()
        if damage == "missing":
            file.unlink()
        else:
            half = len(content) // 2
            flipped = content[:-1] + bytes(
                [content[-1] ^ 1]
            )  # of a weight, which nothing else tells
            broken = {"truncated": content[:half], "empty": b"", "a bit": flipped}
            broken["overwritten"] = b"x" * len(content)
            file.write_bytes(broken[damage])
    resumed = build()
    trainer().fit(resumed, output)
    assert f"{newest}: damaged" in capsys.readouterr().out
    assert_identical(weights(resumed), weights(undisturbed))


def test_an_abandoned_way_is_never_taken_up_again(build: Build, tmp_path: Path) -> None:
    """Back to an older checkpoint: what was trained beyond it is not found any more."""
    output = tmp_path / "out"
    trainer(save_total_limit=9).fit(build(), output)
    older = checkpoints(output)[0]
    source = str(output / "checkpoints" / older)
    interrupt(build, output, resume_from_checkpoint=source, save_steps=100)
    assert checkpoints(output) == [older]


def test_a_torn_line_of_the_log_does_not_stop_a_resumed_run(build: Build, tmp_path: Path) -> None:
    output = tmp_path / "out"
    interrupt(build, output)
    before = logged(output)
    with (output / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    trainer().fit(build(), output)
    assert logged(output)[:2] == before[:2]
    assert logged(output)[-1]["step"] == NUM_STEPS


def test_no_clipping_is_not_no_gradient(build: Build, tmp_path: Path) -> None:
    """`max_grad_norm=0` means off, as it does in transformers."""
    free, unclipped = build(), build()
    trainer(max_grad_norm=1e9).fit(free, tmp_path / "free")
    trainer(max_grad_norm=0).fit(unclipped, tmp_path / "off")
    assert_identical(weights(unclipped), weights(free))


def test_without_a_checkpoint_it_starts_afresh(build: Build, tmp_path: Path) -> None:
    """So that one command line starts a run and goes on with it, whatever happened before."""
    trainer(max_steps=1).fit(build(), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_finished_run_is_not_trained_further(build: Build, tmp_path: Path) -> None:
    finished = build()
    trainer().fit(finished, tmp_path / "out")
    before = logged(tmp_path / "out")
    again = build()
    evaluation = trainer().fit(again, tmp_path / "out")
    assert_identical(weights(again), weights(finished))
    assert logged(tmp_path / "out") == before
    assert evaluation["eval_loss"] == before[-1]["eval_loss"]


def test_a_new_run_in_a_used_folder_does_not_mix_with_the_old_one(
    build: Build, tmp_path: Path
) -> None:
    output, apart = tmp_path / "out", tmp_path / "apart"
    trainer().fit(build(), output)
    with pytest.raises(UserError, match=r"trainer\.seed=1 \(was 0\)"):
        trainer(seed=1).fit(build(), output)
    assert checkpoints(output) == ["step-6", "step-8"], "a refusal has removed something"
    (output / "notes.txt").write_text("one's own")
    anew, alone = build(), build()
    trainer(seed=1, max_steps=4, resume=False).fit(anew, output)
    trainer(seed=1, max_steps=4).fit(alone, apart)
    assert_identical(weights(anew), weights(alone))
    assert checkpoints(output) == ["step-2", "step-4"]
    assert logged(output) == logged(apart)
    assert (output / "notes.txt").read_text() == "one's own"


# --- Checkpoints ---


def test_only_the_newest_checkpoints_are_kept(build: Build, tmp_path: Path) -> None:
    trainer(max_steps=11, save_steps=1, save_total_limit=3).fit(build(), tmp_path / "out")
    assert set(checkpoints(tmp_path / "out")) == {"step-9", "step-10", "step-11"}


def test_a_checkpoint_is_whole_or_absent(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in the middle of a save leaves the earlier checkpoint as the latest."""
    undisturbed = build()
    trainer().fit(undisturbed, tmp_path / "whole")

    save_state = Accelerator.save_state

    def crash(self: Accelerator, folder: str) -> None:
        save_state(self, folder)
        if "step-4" in folder:
            model = next(Path(folder).glob("*.safetensors"))
            model.write_bytes(model.read_bytes()[:100])
            raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", crash)
        with pytest.raises(UserError, match="no space"):
            trainer().fit(build(), tmp_path / "out")
    assert checkpoints(tmp_path / "out") == ["step-2"], "half a checkpoint bears its final name"

    resumed = build()
    trainer().fit(resumed, tmp_path / "out")
    assert_identical(weights(resumed), weights(undisturbed))
    assert checkpoints(tmp_path / "out") == ["step-6", "step-8"]


class Judged(LanguageModeling):
    """Its evaluations are given: the third, after that of step 0 and another one, is the best."""

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        self.num_evaluations = getattr(self, "num_evaluations", 0) + 1
        self.seen = [*getattr(self, "seen", []), weights(self)]
        return {"eval_loss": [4.0, 3.0, 1.0, 2.0, 1.5][self.num_evaluations - 1]}


def test_the_best_is_kept_apart(build: Build, tmp_path: Path) -> None:
    objective = build(Judged)
    trainer(eval_steps=2).fit(objective, tmp_path / "out")
    kept = load_file(tmp_path / "out" / "best" / "model.safetensors")
    best, last = ({k: v.bfloat16() for k, v in objective.seen[i].items()} for i in (2, -1))
    assert all(torch.equal(kept[name], best[name]) for name in kept)
    assert any(not torch.equal(kept[name], last[name]) for name in kept)


def test_a_resumed_run_remembers_the_best(build: Build, tmp_path: Path) -> None:
    trainer(max_steps=4, eval_steps=2).fit(build(Judged), tmp_path / "out")
    before = (tmp_path / "out" / "best" / "model.safetensors").read_bytes()
    worse = build(Judged)
    worse.num_evaluations = 3
    resumed = trainer(max_steps=8, eval_steps=2)
    resumed.fit(worse, tmp_path / "out")
    assert (tmp_path / "out" / "best" / "model.safetensors").read_bytes() == before


def test_train_save_load_decode(build: Build, tmp_path: Path) -> None:
    objective = build()
    trainer(max_steps=40).fit(objective, tmp_path / "out")
    verifier = load(str(tmp_path / "out"))
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    request = Request("cat", verifier.encode("the cat sat on the"))
    decoder = SpeculativeDecoder(
        verifier, NoProposer(), Rejection(), Sampling(0.0), Stopping.of(verifier, 8)
    )
    (trace,) = decoder.decode([request])
    assert len(trace.output_ids) == 8
    learnt = set((tmp_path / "learnt.txt").read_text().split())
    whole_words = trace.output_text.split()[1:-1]
    assert set(whole_words) <= learnt, f"a trained model says {trace.output_text!r}"
    assert verifier.end_ids == {objective.tokenizer.eos_token_id}


def test_training_goes_on_from_a_saved_model(build: Build, tmp_path: Path) -> None:
    trainer(max_steps=40).fit(build(), tmp_path / "first")
    options = {"init_path": str(tmp_path / "first"), "block_length": 32}
    continued = build(**options, max_position_embeddings=128)
    trainer(max_steps=1, learning_rate=0.0).fit(continued, tmp_path / "second")
    assert losses(tmp_path / "second")[0] < 0.5 * math.log(280), "the weights were not taken over"
    assert load(str(tmp_path / "second")).max_length == 128


# --- Mistakes ---


@pytest.mark.parametrize("logging_steps", [1, 4])
def test_a_loss_that_is_no_number_is_named(
    build: Build, tmp_path: Path, logging_steps: int
) -> None:
    with pytest.raises(UserError, match=r"step 4: .*nan.*learning_rate") as caught:
        trainer(logging_steps=logging_steps).fit(build(Diverging), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", [Diverging, DivergingGradient])
@pytest.mark.parametrize(("save_steps", "logging_steps"), [(1, 1), (1, 8), (5, 8)])
def test_no_checkpoint_holds_weights_that_are_no_numbers(
    build: Build, tmp_path: Path, kind: type[LanguageModeling], save_steps: int, logging_steps: int
) -> None:
    """Saves between two logs must not push out the last good checkpoint."""
    with pytest.raises(UserError, match=r"step [456]: "):
        trainer(save_steps=save_steps, logging_steps=logging_steps).fit(
            build(kind), tmp_path / "out"
        )
    for name in checkpoints(tmp_path / "out"):
        (path,) = (tmp_path / "out" / "checkpoints" / name).glob("*.safetensors")
        bad = [key for key, value in load_file(path).items() if not value.isfinite().all()]
        assert not bad, f"{name} is poisoned: resuming from it can only fail again"
    if save_steps == 1:
        assert "step-3" in checkpoints(tmp_path / "out"), "the last good checkpoint is gone"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_steps", 0),
        ("max_steps", 1.5),
        ("per_device_train_batch_size", 0),
        ("gradient_accumulation_steps", True),
        ("learning_rate", -1e-3),
        ("learning_rate", "fast"),
        ("lr_scheduler_type", "cosinus"),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
        ("weight_decay", None),
        ("adam_beta2", 1.0),
        ("adam_beta2", "0.9"),
        ("max_grad_norm", -1),
        ("mixed_precision", "int8"),
        ("logging_steps", 0),
        ("eval_steps", 0),
        ("save_steps", 0),
        ("save_total_limit", 0),
        ("seed", -1),
        ("resume_from_checkpoint", 5),
    ],
)
def test_a_bad_option_of_the_trainer_is_refused(option: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        trainer(**{option: value})
    assert_names(caught.value, option, value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("block_length", 1),
        ("block_length", 65),  # max_position_embeddings is 64
        ("block_length", "16"),
        ("hidden_size", 0),
        ("hidden_size", 15),
        ("hidden_size", 16.0),
        ("intermediate_size", 0),
        ("num_hidden_layers", 0),
        ("num_attention_heads", 0),
        ("max_position_embeddings", "64"),
        ("vocab_size", 256),
        ("eval_tokens", 0),
        ("eval_tokens", 1),  # one token has none after it, so nothing to score
        ("seed", -1),
        ("tokenizer_path", "./nothing"),
        ("init_path", "./nothing"),
        ("data_path", "nothing.txt"),
        ("held_out_path", "nothing.txt"),
    ],
)
def test_a_bad_option_of_the_objective_is_refused(build: Build, option: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        build(**{option: value})
    # On the command line the paths of the data are options of their own.
    shown = {"data_path": "data.path", "held_out_path": "data.held_out_path"}.get(option, option)
    assert_names(caught.value, shown, value)


def assert_names(error: UserError, option: str, value: object) -> None:
    assert "\n" not in str(error)
    assert f"{option}={value!r}" in str(error), f"{error}: does not name {option}={value!r}"


@pytest.mark.parametrize("name", ["nothing", "renamed"])
def test_a_checkpoint_that_is_none_is_named(build: Build, tmp_path: Path, name: str) -> None:
    (tmp_path / "renamed").mkdir()
    source = str(tmp_path / name)
    with pytest.raises(UserError) as caught:
        trainer(resume_from_checkpoint=source).fit(build(), tmp_path / "out")
    assert_names(caught.value, "resume_from_checkpoint", source)

"""Heads trained together with their verifier: a new verifier, near the old one, that is exact."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from specdec.core.errors import UserError
from specdec.core.sampling import Sampling
from specdec.decoding.decoder import SpeculativeDecoder
from specdec.decoding.request import Request
from specdec.decoding.stopping import Stopping
from specdec.lm.hf import HFCausalLM
from specdec.lm.load import load
from specdec.training.acceptance import Acceptance
from specdec.training.chained import ChainedTraining
from specdec.training.data.verifier_states import VerifierStates
from specdec.training.heads import HeadTraining
from specdec.training.joint import Joint
from specdec.training.joint_losses import JointLosses
from specdec.training.loss.cross_entropy import CrossEntropy
from specdec.training.loss.kl import KL
from specdec.training.medusa import MedusaTraining
from specdec.training.objective import Batch
from specdec.training.trainer import Trainer
from specdec.training.tuning import Full, LoRA, Tuned
from specdec.tree.chain import Chain
from specdec.tree.sparse import Sparse
from specdec.verification.rejection import Rejection
from tests.support.families import tiny_model
from tests.support.launching import heads_options, launch, losses
from tests.support.running import CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

K = 2
WITH_PEFT = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft is not installed (extra `joint`)"
)
METHODS = [pytest.param("lora", marks=WITH_PEFT), "full"]
each_method = pytest.mark.parametrize("method", METHODS)
KINDS: dict[str, tuple[Callable[..., HeadTraining], dict[str, Any]]] = {
    "medusa": (MedusaTraining, {}),
    "medusa shared": (MedusaTraining, {"own_vocabulary_head": False}),
    "markov shared": (
        MedusaTraining,
        {"own_vocabulary_head": False, "correction": "markov", "rank": 3},
    ),
    "chained": (ChainedTraining, {}),
    "chained shared": (ChainedTraining, {"own_vocabulary_head": False}),
}
TREE = Sparse([[0], [1], [0, 0]])


@pytest.fixture
def text(tiny: Tiny, tmp_path: Path) -> Path:
    """A few conversations' worth of tokens that the random verifier has never heard of."""
    path = tmp_path / "text.txt"
    path.write_text(tiny.text.read_text(encoding="utf-8")[:300], encoding="utf-8")
    return path


def joint(
    verifier: HFCausalLM, text: Path, kind: str = "medusa", loss: Any = None, **more: Any
) -> Joint:
    """Build everything anew, as a new process would."""
    states = VerifierStates(verifier, str(text), str(text), max_length=24, eval_samples=2)
    cls, options = KINDS[kind]
    acceptance = Acceptance(Chain(K), Sampling(0), num_prompts=2, max_new_tokens=8)
    heads = cls(states, loss or CrossEntropy(), acceptance, num_heads=K, **options)
    settings = {"lora_rank": 4, "heads_warmup_steps": 2, "learning_rate_scale": 1.0, **more}
    both = Joint(heads, **settings)
    both.prepare()
    return both


def trainer(**more: Any) -> Trainer:
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "logging_steps": 1,
        "eval_steps": 100,
        "save_steps": 100,
        "save_total_limit": 9,
    }
    return Trainer(**{**settings, **more})


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]


@torch.inference_mode()
def logits_of(lm: HFCausalLM | Any, token_ids: Tensor) -> Tensor:
    model = lm.model if isinstance(lm, HFCausalLM) else lm
    return model(input_ids=token_ids, use_cache=False).logits


def distributions(lm: HFCausalLM, batch: Batch) -> Tensor:  # [B, T - 1, V]
    """Return the log-probabilities of every token but the first."""
    return logits_of(lm, batch.token_ids)[:, :-1].log_softmax(-1)


def rows(output: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl without the speed, which no two runs share."""
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key != "tokens_per_second"}
        for line in lines
    ]


# --- What is trained, and when ---


@each_method
@pytest.mark.parametrize("kind", KINDS)
def test_the_verifier_is_left_alone_in_the_warm_up_only(
    verifier: HFCausalLM, text: Path, tmp_path: Path, method: str, kind: str
) -> None:
    one = joint(verifier, text, kind, method=method)
    start = copied(one.module)
    trainer(max_steps=2).fit(one, tmp_path / "warm-up")
    changed = differing(copied(one.module), start)
    assert changed, "nothing is trained"
    assert all(name.startswith("head_losses.") for name in changed)

    two = joint(verifier, text, kind, method=method)
    trainer(max_steps=5).fit(two, tmp_path / "all")
    changed = differing(copied(two.module), start)
    unchanged = sorted(start.keys() - set(changed))
    assert unchanged == [], "trained in name only"


@each_method
@pytest.mark.parametrize("kind", ["medusa", "chained shared"])
def test_the_original_is_not_changed(
    verifier: HFCausalLM, text: Path, tmp_path: Path, method: str, kind: str
) -> None:
    before = copied(verifier.model)
    modules = [type(module) for module in verifier.model.modules()]
    trainer().fit(joint(verifier, text, kind, method=method), tmp_path)
    assert differing(copied(verifier.model), before) == []
    assert [type(module) for module in verifier.model.modules()] == modules
    assert not any(weight.requires_grad for weight in verifier.model.parameters())


@WITH_PEFT
def test_lora_needs_no_second_copy_of_the_weights(verifier: HFCausalLM, text: Path) -> None:
    one = joint(verifier, text, method="lora")
    ours = {weight.data_ptr() for weight in verifier.model.parameters()}
    theirs = {weight.data_ptr() for weight in one.tuned.lm.model.parameters()}
    assert ours < theirs
    trained = {name for name, _ in one.module.named_parameters() if name.startswith("verifier.")}
    assert trained
    assert all("lora" in name for name in trained), "checkpoints hold what is not trained"


@each_method
def test_the_loss_is_the_sum_of_its_parts(verifier: HFCausalLM, text: Path, method: str) -> None:
    """Against plain forwards: KL(original || tuned) and the text's cross-entropy."""
    weights: dict[str, Any] = {
        "heads_weight": 0.0,
        "self_distillation": 0.5,
        "language_modeling": 0.25,
    }
    one = joint(verifier, text, method=method, heads_warmup_steps=0, **weights)
    disturb(one)
    batch = one.batch(0, 2)
    with torch.no_grad():
        found = one.loss(one.module, batch)
    counted = batch.counted[:, 1:]
    log_p, log_q = distributions(verifier, batch), distributions(one.tuned.lm, batch)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)[counted].sum()
    text_loss = -log_q.gather(-1, batch.token_ids[:, 1:, None])[..., 0][counted].sum()
    assert kl > 1
    torch.testing.assert_close(found, 0.5 * kl + 0.25 * text_loss, rtol=1e-4, atol=1e-3)


@each_method
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_differences(
    verifier: HFCausalLM, text: Path, method: str, kind: str
) -> None:
    """Chunks differentiate themselves: what of the verifier they read must not be forgotten."""
    weights: dict[str, Any] = {
        "heads_weight": 1.0,
        "self_distillation": 0.5,
        "language_modeling": 0.25,
    }
    one = joint(verifier, text, kind, method=method, heads_warmup_steps=0, **weights)
    disturb(one)
    batch = one.batch(0, 1)
    one.loss(one.module, batch).backward()
    assert isinstance(one.module, JointLosses)
    generator = torch.Generator().manual_seed(8)
    for name, weight in one.module.verifier.items():
        assert weight.grad is not None
        # Along the gradient the slope is steepest, and rounding matters least.
        direction = weight.grad / weight.grad.norm().clamp(min=1e-9)
        direction = direction + 0.1 * torch.randn(weight.shape, generator=generator) / 32
        expected = float((weight.grad * direction).sum())
        values: list[float] = []
        for size in (3e-3, -6e-3, 3e-3):
            with torch.no_grad():
                weight.add_(size * direction)
                values.append(float(one.loss(one.module, batch)))
        slope = (values[0] - values[1]) / 6e-3
        assert slope == pytest.approx(expected, rel=5e-2, abs=0.5), name


def disturb(one: Joint) -> None:
    assert isinstance(one.module, JointLosses)
    generator = torch.Generator().manual_seed(5)
    for weight in one.module.verifier.values():
        weight.data.add_(0.1 * torch.randn(weight.shape, generator=generator))


def test_the_teacher_of_the_heads_is_the_tuned_verifier(verifier: HFCausalLM, text: Path) -> None:
    """It follows what the verifier has become, and is not itself taught by the heads' loss."""
    only = {"heads_weight": 1.0, "self_distillation": 0.0, "heads_warmup_steps": 0}
    one = joint(verifier, text, loss=KL(), method="full", **only)
    batch = one.batch(0, 2)
    loss = one.loss(one.module, batch)
    loss.backward()
    before = float(loss.detach())
    head = one.tuned.lm.model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    assert head.weight.grad is not None
    assert not head.weight.grad.any(), "the teacher is taught"
    with torch.no_grad():
        head.weight.mul_(-1)
        after = one.loss(one.module, batch)
    assert float(after) != pytest.approx(before, rel=1e-2), "the original still teaches"


@each_method
def test_self_distillation_keeps_the_verifier_near_itself(
    verifier: HFCausalLM, text: Path, tmp_path: Path, method: str
) -> None:
    found: dict[float, float] = {}
    for weight in (0.0, 10.0):
        one = joint(verifier, text, method=method, heads_weight=1.0, self_distillation=weight)
        evaluation = trainer(max_steps=12).fit(one, tmp_path / str(weight))
        found[weight] = evaluation["eval_kl_to_original"]
    assert 0 < found[10.0] < 0.5 * found[0.0]


@each_method
def test_the_distance_is_measured_per_held_out_token(
    verifier: HFCausalLM, text: Path, method: str
) -> None:
    one = joint(verifier, text, method=method)
    disturb(one)
    with torch.no_grad():
        evaluation = one.evaluate(one.module)
    held_out = one.states.held_out
    log_p, log_q = distributions(verifier, held_out), distributions(one.tuned.lm, held_out)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)[held_out.counted[:, 1:]].mean()
    assert evaluation["eval_kl_to_original"] == pytest.approx(float(expected), rel=1e-4)


# --- Interrupted and resumed ---


@each_method
@pytest.mark.parametrize("stopped", [1, 2, 5], ids=lambda step: f"in step {step + 1}")
def test_a_resumed_run_ends_like_an_undisturbed_one(
    verifier: HFCausalLM,
    text: Path,
    tmp_path: Path,
    method: str,
    stopped: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Interrupted in the warm-up of 2 steps, just after it, and later."""
    often = {"save_steps": 1, "eval_steps": 3}
    undisturbed = joint(verifier, text, method=method)
    trainer(**often).fit(undisturbed, tmp_path / "whole")

    broken = joint(verifier, text, method=method)
    batch = broken.batch

    def interrupt(first: int, count: int):
        if first >= stopped * count:
            raise KeyboardInterrupt
        return batch(first, count)

    monkeypatch.setattr(broken, "batch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer(**often).fit(broken, tmp_path / "parts")
    resumed = joint(verifier, text, method=method, seed=99)  # another start, all of it restored
    trainer(**often).fit(resumed, tmp_path / "parts")

    assert differing(copied(resumed.module), copied(undisturbed.module)) == []
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    for name in ("model.safetensors", "verifier/model.safetensors"):
        parts, whole = ((tmp_path / run / name).read_bytes() for run in ("parts", "whole"))
        assert parts == whole


# --- The new verifier ---


@each_method
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_train_save_load_decode(
    tiny: Tiny, text: Path, tmp_path: Path, method: str, dtype: str
) -> None:
    """The text is that of `generate()` of the new verifier; the original is refused."""
    original = load(str(tiny.verifier), dtype=dtype)
    one = joint(original, text, method=method)
    trainer(max_steps=30).fit(one, tmp_path)
    new = load(str(tmp_path / "verifier"), dtype=dtype)
    proposer = MedusaTraining.proposer.load(str(tmp_path), new, TREE)
    with pytest.raises(UserError, match=r"trained on another verifier.*weights differ"):
        MedusaTraining.proposer.load(str(tmp_path), original, TREE)
    if dtype == "bfloat16":
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "verifier")
        assert saved.dtype == torch.bfloat16
        return  # where forwards of many tokens and of one round differently
    prompt = list(new.encode("def add(first"))
    decoder = SpeculativeDecoder(new, proposer, Rejection(), Sampling(0), Stopping(40))
    (trace,) = decoder.decode([Request("a", prompt)])
    stock: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "verifier", dtype=torch.float32)
    written = stock.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=40,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert list(trace.output_ids) == written[0, len(prompt) :].tolist()
    assert not torch.allclose(logits_of(new, written), logits_of(original, written), atol=1e-2)


@WITH_PEFT
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mixtral", "gemma3_text"])
def test_merged_weights_say_what_the_adapters_said(family: str) -> None:
    original = tiny_model(family)
    method = LoRA(original, 4, 8, None, seed=0)
    token_ids = torch.arange(20)[None]
    assert torch.equal(logits_of(method.model, token_ids), logits_of(original, token_ids))
    generator = torch.Generator().manual_seed(1)
    for weight in method.model.parameters():
        if weight.requires_grad:
            weight.data.add_(0.1 * torch.randn(weight.shape, generator=generator))
    merged = method.merged()
    assert [name for name, _ in merged.named_parameters()] == [
        name for name, _ in original.named_parameters()
    ]
    adapted = logits_of(method.model, token_ids)
    torch.testing.assert_close(logits_of(merged, token_ids), adapted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(adapted, logits_of(original, token_ids), atol=1e-1)


@each_method
def test_a_folder_says_what_the_tuned_verifier_says(
    verifier: HFCausalLM, tmp_path: Path, method: str
) -> None:
    way = Full(verifier.model) if method == "full" else LoRA(verifier.model, 4, 4, None, seed=0)
    one = Tuned(verifier, way)
    with torch.no_grad():
        for weight in one.trained().values():
            weight.add_(0.05)
    known = one.save(tmp_path / "verifier")
    loaded = load(str(tmp_path / "verifier"))
    assert known["path"] == str(tmp_path / "verifier")
    token_ids = torch.arange(20)[None]
    torch.testing.assert_close(
        logits_of(loaded, token_ids), logits_of(one.lm, token_ids), rtol=1e-5, atol=1e-5
    )
    assert loaded.tokenizer is not None
    assert verifier.tokenizer is not None
    assert loaded.tokenizer.get_vocab() == verifier.tokenizer.get_vocab()


@WITH_PEFT
def test_only_the_named_layers_are_tuned(verifier: HFCausalLM) -> None:
    one = Tuned(verifier, LoRA(verifier.model, 2, 2, ["v_proj"], seed=0))
    assert {name.split(".")[-4] for name in one.trained()} == {"v_proj"}


# --- The command line ---


def command(tiny: Tiny, output: Path, *more: str) -> list[str]:
    return [
        *("joint=true", f"verifier.path={tiny.verifier}", f"data.path={tiny.text}"),
        *(f"data.held_out_path={tiny.text}", f"output={output}", "data.max_length=16"),
        *("max_steps=2", "tuning.heads_warmup_steps=1", "train.num_heads=2", "tree.gamma=2"),
        *more,
    ]


@pytest.mark.parametrize(
    ("kind", "method"), [pytest.param("medusa", "lora", marks=WITH_PEFT), ("chained", "full")]
)
def test_the_command_line_trains_and_decodes(
    cli: CommandLine, tiny: Tiny, empty_folder: Path, kind: str, method: str
) -> None:
    out = f"{method}-{kind}"  # loaded verifiers are remembered by their paths
    options = [f"train={kind}", f"tuning.method={method}"]
    ended = cli("train", *command(tiny, Path(out), *options))
    assert ended.status == 0, ended.err
    assert "eval_kl_to_original" in ended.out
    heads = [f"proposer={kind}", f"proposer.path={out}", "tree=sparse", "tree.paths=[[0],[0,0]]"]
    ended = cli("decode", *tiny.options("new", f"verifier.path={out}/verifier", *heads))
    assert ended.status == 0, ended.err
    ended = cli("decode", *tiny.options("old", *heads))
    assert ended.status == 2
    assert "trained on another verifier" in ended.err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["train=medusa", "data.cache_path=states"], "data.cache_path='states': expected null"),
        (["train=medusa", "joint=1"], "joint=1: expected true or false"),
        (["train=medusa", "tuning.method=qlora"], "tuning.method='qlora': expected lora or full"),
        (["train=medusa", "tuning.heads_weight=-1"], "tuning.heads_weight=-1: expected a number"),
        (["train=medusa", "tuning.heads_warmup_steps=0.5"], "tuning.heads_warmup_steps=0.5: "),
        (["train=medusa", "tuning.lora_rank=0"], "tuning.lora_rank=0: expected an integer"),
        pytest.param(
            ["train=medusa", "tuning.lora_targets=[lm_head]"],
            "tuning.lora_targets=['lm_head']: expected names of linear layers, of down_proj",
            marks=WITH_PEFT,
        ),
        (["train=medusa", "tuning.lora_targets=v_proj"], "tuning.lora_targets='v_proj': expected"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_is_named_in_one_line(
    cli: CommandLine, tiny: Tiny, empty_folder: Path, options: list[str], complaint: str
) -> None:
    ended = cli("train", *command(tiny, Path("out"), *options))
    assert ended.status == 2
    assert ended.err.startswith(f"error: {complaint}"), ended.err
    assert ended.err.count("\n") == 1
    assert not Path("states").exists()


def test_a_language_model_has_no_heads(cli: CommandLine, tiny: Tiny, empty_folder: Path) -> None:
    data = [f"data.path={tiny.text}", f"data.held_out_path={tiny.text}", "output=out"]
    small = ["train.block_length=16", "train.vocab_size=300", "train.hidden_size=12"]
    shape = ["train.num_hidden_layers=1", "train.num_attention_heads=1"]
    ended = cli("train", "joint=true", "train=lm", *data, *small, *shape)
    assert ended.status == 2
    assert ended.err.startswith("error: joint=true: LanguageModeling has no heads"), ended.err


def test_lora_without_peft_is_named(
    cli: CommandLine, tiny: Tiny, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    ended = cli("train", *command(tiny, Path("out"), "train=medusa"))
    assert ended.status == 2
    assert ended.err == (
        "error: tuning.method='lora': needs the package peft; pip install 'specdec-lab[joint]'\n"
    )


@pytest.mark.slow  # that processes share a batch rightly is seen in test_processes.py
@WITH_PEFT
def test_two_processes_with_half_the_batch_give_the_losses_of_one(
    cli: CommandLine, tiny: Tiny, tmp_path: Path
) -> None:
    """In the warm-up, too, where the verifier's weights are in no loss."""
    more = ("joint=true", "tuning.heads_warmup_steps=2", "data.eval_samples=1")
    ended = cli("train", *heads_options(tmp_path / "one", tiny, 4, *more))
    assert ended.status == 0, ended.err
    one = losses(tmp_path / "one")
    two = launch(2, tmp_path / "two", tiny, 2, *more)
    assert len(one) == 4
    assert two == pytest.approx(one, rel=1e-4)

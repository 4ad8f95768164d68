"""A sweep over trainings: each is trained, decoded with and compared; nothing is done twice."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import equal

from specdec.core.digest import digest
from specdec.lab.identity import files_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from specdec.training.objective import Batch
    from tests.support.running import CommandLine, Ended, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder", "fresh_accelerator")


def options(tiny: Tiny, *more: str) -> list[str]:
    """Return a sweep that takes a second a run; in Hydra the last one of a key holds."""
    return [
        *("-m", "output=sweep", f"verifier.path={tiny.verifier}", "train=medusa"),
        *(f"data.path={tiny.text}", f"data.held_out_path={tiny.text}", "data.max_length=16"),
        *("train.num_heads=2", "tree.gamma=2", "trainer.per_device_train_batch_size=2"),
        *("trainer.save_steps=2", "evaluation.num_prompts=1", "evaluation.max_new_tokens=4"),
        f"decode=['prompts.path={tiny.prompts}','max_new_tokens=8']",
        *more,
    ]


def runs() -> dict[str, str]:
    """Return the state of each run directory, by its name without digits of its identity."""
    files = sorted(Path("sweep").glob("*/status.json"))
    return {
        re.sub("-[0-9a-f]{8}$", "", file.parent.name): json.loads(file.read_text())["state"]
        for file in files
    }


def run_of(beginning: str) -> Path:
    (found,) = Path("sweep").glob(f"{beginning}-*")
    return found


def table() -> Any:  # pandas' own types know no truth of a cell
    return pd.read_csv("sweep/summary.csv")


@pytest.fixture(scope="module")
def training_sweep(
    tiny: Tiny, cli: CommandLine, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Ended]:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, cli("train", *options(tiny, "max_steps=2,4", "seed=0,1"), plots=True)


@pytest.fixture
def trained(training_sweep: tuple[Path, Ended]) -> Ended:
    """A copy of a sweep of four trainings, in `sweep`, and what it said."""
    shutil.copytree(training_sweep[0], ".", dirs_exist_ok=True)
    return training_sweep[1]


def test_every_training_is_decoded_with_and_compared(trained: Ended) -> None:
    assert trained.status == 0, trained.err
    assert set(runs()) == {f"max_steps={n},seed={seed}" for n in (2, 4) for seed in (0, 1)}
    assert set(runs().values()) == {"complete"}
    found = table()
    # Two samples of sixteen tokens a step, the first of which nothing predicts.
    assert sorted(found["training.tokens"]) == [2 * 2 * 15, 4 * 2 * 15]
    assert list(found["seeds"]) == ["0,1", "0,1"]
    assert set(found["arm"]) == {"medusa, tokens=60", "medusa, tokens=120"}
    assert {"block_efficiency", "difference"} <= set(found.columns)
    assert Path("sweep/plots/block_efficiency_by_training.tokens.svg").exists()


def test_the_same_command_again_trains_nothing(
    trained: Ended, tiny: Tiny, cli: CommandLine
) -> None:
    weights = {file: file.stat().st_mtime_ns for file in Path("sweep").rglob("*.safetensors")}
    again = cli("train", *options(tiny, "max_steps=2,4", "seed=0,1"))
    assert "4 complete, 0 to run" in again.out, again.err
    assert {file: file.stat().st_mtime_ns for file in Path("sweep").rglob("*.safetensors")} == (
        weights
    )


@pytest.mark.thorough
def test_resume_false_trains_again(trained: Ended, tiny: Tiny, cli: CommandLine) -> None:
    run = run_of("max_steps=2,seed=0")
    before = load_file(run / "trained" / "model.safetensors")
    before = {name: value.clone() for name, value in before.items()}  # the file is mapped
    (run / "trained" / "model.safetensors").write_bytes(b"damaged")
    again = cli("train", *options(tiny, "max_steps=2", "seed=0", "resume=false"))
    assert again.status == 0, again.err
    after = load_file(run / "trained" / "model.safetensors")
    assert all(equal(after[name], before[name]) for name in before)


@pytest.mark.thorough
def test_a_run_that_is_trained_again_is_not_complete(
    trained: Ended, tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever that is killed: the numbers of the run belong to weights that are gone."""
    from specdec.training.medusa import MedusaTraining

    run = run_of("max_steps=2,seed=0")
    overrides = options(tiny, "max_steps=2", "seed=0")
    seen = []

    def killed(*_: object) -> None:
        seen.append((json.loads((run / "status.json").read_text()), list(run.glob("summary.*"))))
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(MedusaTraining, "loss", killed)
        assert cli("train", *overrides, "resume=false").status == 1
    ((status, results),) = seen
    assert (status["state"], results) == ("started", [])
    (run / "status.json").write_text(json.dumps(status))  # as SIGKILL leaves it
    assert "\ninterrupted " in cli("train", *overrides, "--dry-run").out
    assert "0 complete, 1 to run" in cli("train", *overrides).out


@pytest.mark.thorough
def test_seeds_share_the_answers(tiny: Tiny, cli: CommandLine) -> None:
    """And the first one, who writes them, bears the name that was planned."""
    distill = ("distill.path=answers.jsonl", "distill.max_new_tokens=8", "distill.prompt_tokens=8")
    overrides = options(tiny, "seed=0,1", "max_steps=1", *distill)
    planned = listed(cli("train", *overrides, "--dry-run"))
    ended = cli("train", *overrides)
    assert ended.status == 0, ended.err
    assert {file.parent.name for file in Path("sweep").glob("*/status.json")} == set(planned)
    assert listed(cli("train", *overrides, "--dry-run")) == planned
    assert list(table()["seeds"]) == ["0,1"]


def listed(ended: Ended) -> list[str]:
    """Return the names of the runs that --dry-run has listed."""
    assert ended.status == 0, ended.err
    return re.findall(r"^(?:new|complete) +(\S+)", ended.out, re.MULTILINE)


@pytest.mark.parametrize(
    "swept",
    [
        "verifier.dtype=float32,bfloat16",
        "verifier.attention=eager,sdpa",
        "trainer.seed=0,1",
        "trainer.max_steps=1,2",
        "train.share=0.5,1",
        "+train.extra={a:1},{a:2}",
        "decode=[PROMPTS,'max_new_tokens=8'],[PROMPTS,'proposer.temperature=1','draft.dtype=bfloat16']",
    ],
)
def test_what_matters_is_told_apart(tiny: Tiny, cli: CommandLine, swept: str) -> None:
    overrides = swept.replace("PROMPTS", f"'prompts.path={tiny.prompts}'")
    found = listed(cli("train", *options(tiny, overrides, "--dry-run")))
    assert len(set(found)) == 2
    if swept.startswith("trainer.max_steps"):
        assert [name.split("-")[0] for name in found] == ["max_steps=1", "max_steps=2"]


def test_the_verifier_decodes_as_it_was_trained_with(tiny: Tiny, cli: CommandLine) -> None:
    overrides = ("max_steps=1", "verifier.dtype=bfloat16", "verifier.attention=eager")
    ended = cli("train", *options(tiny, *overrides))
    assert ended.status == 0, ended.err
    assert ended.out.startswith("sweep: 1 run from 1 combination, 0 complete")
    verifier = OmegaConf.load(run_of("default") / "config.yaml").verifier
    assert (verifier.dtype, verifier.attention) == ("bfloat16", "eager")


def test_other_files_make_other_runs(tiny: Tiny, cli: CommandLine) -> None:
    text, names = Path("text.txt"), []
    for end in ("", "more"):
        text.write_text(tiny.text.read_text() + end)
        names += listed(cli("train", *options(tiny, f"data.path={text}", "seed=0", "--dry-run")))
    assert len(set(names)) == 2
    assert files_of(
        {"training.train.init_path": str(text), "training.distill.path": str(text)}
    ) == {"training.train.init_path": digest(text)}


def test_a_shortened_sweep_lists_what_runs(tiny: Tiny, cli: CommandLine) -> None:
    assert "max_steps=2" in cli("train", *options(tiny, "debug=fast", "--dry-run")).out
    found = listed(cli("train", *options(tiny, "debug=fast", "max_steps=3,4", "--dry-run")))
    assert [name.split("-")[0] for name in found] == ["max_steps=3", "max_steps=4"]


def test_a_dry_run_of_one_training_trains_nothing(tiny: Tiny, cli: CommandLine) -> None:
    data = (f"data.path={tiny.text}", f"data.held_out_path={tiny.text}", "--dry-run")
    assert cli("train", *data, "output=mine").out == "one training, into mine\n"
    assert not Path("mine").exists()


@pytest.mark.thorough
def test_an_interrupted_training_goes_on(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are those of a training that nothing happened to."""
    from specdec.training.medusa import MedusaTraining

    whole = options(tiny, "max_steps=4,5", "output=whole")
    assert cli("train", *whole).status == 0
    loss, calls = MedusaTraining.loss, []

    def interrupted(self: MedusaTraining, module: nn.Module, batch: Batch) -> Tensor:
        calls.append(None)
        if len(calls) == 4:
            raise RuntimeError("the machine has gone")
        return loss(self, module, batch)

    with monkeypatch.context() as patch:
        patch.setattr(MedusaTraining, "loss", interrupted)
        ended = cli("train", *options(tiny, "max_steps=4,5"))
    assert ended.status == 1
    assert runs() == {"max_steps=4": "failed", "max_steps=5": "complete"}
    assert ended.err.count("the machine has gone") == 1
    assert [file.name for file in (run_of("max_steps=4") / "trained/checkpoints").iterdir()]
    again = cli("train", *options(tiny, "max_steps=4,5"))
    assert "1 complete, 1 to run" in again.out
    assert again.status == 0, again.err
    assert "going on from step 2" in again.out
    (theirs,) = Path("whole").glob("max_steps=4-*")
    ours, theirs = (
        load_file(run / "trained/model.safetensors") for run in (run_of("max_steps=4"), theirs)
    )
    assert all(equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.thorough
def test_what_was_swept_tells_the_arms_apart(tiny: Tiny, cli: CommandLine) -> None:
    more = ("train=medusa,chained", "loss=kl,cross_entropy", "max_steps=2")
    ended = cli("train", *options(tiny, *more))
    assert ended.status == 0, ended.err
    arms = {f"{kind}, loss={loss}" for kind in ("medusa", "chained") for loss in ("kl", "x")}
    assert {arm.replace("cross_entropy", "x") for arm in table()["arm"]} == arms


@pytest.mark.thorough
def test_drafts_and_tuned_verifiers_are_decoded_with(tiny: Tiny, cli: CommandLine) -> None:
    draft = ("train.hidden_size=12", "train.intermediate_size=16", "train.num_attention_heads=1")
    overrides = [text for text in options(tiny, "max_steps=2") if "train.num_heads" not in text]
    ended = cli("train", *overrides, "train=draft_model", *draft, "seed=0,1")
    assert ended.status == 0, ended.err
    assert set(table()["proposer"]) == {"draft_model"}
    joint = ("joint=true", "tuning.method=full", "tuning.heads_warmup_steps=1", "max_steps=2,3")
    ended = cli("train", *options(tiny, *joint, "output=joint"))
    assert ended.status == 0, ended.err
    # Each has a verifier of its own, so they are not compared.
    found: Any = pd.read_csv("joint/summary.csv")
    assert len(found) == 2
    assert found["setting"].nunique() == 2


def test_a_tree_deeper_than_the_heads_is_left_out(tiny: Tiny, cli: CommandLine) -> None:
    ended = cli("train", *options(tiny, "tree.gamma=2,3", "max_steps=2", "--dry-run"))
    assert ended.status == 0, ended.err
    assert "1 run from 2 combinations" in ended.out
    assert "left out, 1 combination: tree: 3 levels, but there are 2 heads" in ended.out


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["train=lm,medusa", "~train.num_heads"], "train=lm: proposes nothing"),
        (["decode=['sampling.temperature=1']", "seed=0,1"], "decode: sampling.temperature=1: "),
        (["decode=['proposer.revision=v2']", "seed=0,1"], "decode: proposer.revision=v2: "),
        (["decode=['max_new_tokens=none']", "seed=0,1"], "max_new_tokens"),
        (["decode=prompts", "seed=0,1"], "decode='prompts'"),
        (["max_steps=0,1"], "max_steps=0"),
        (["data.path=???", "seed=0,1"], "data.path: missing"),
        (["trainer.warmup_steps=1.5", "seed=0,1"], "trainer.warmup_steps=1.5"),
        (["train.share=0"], "train.share=0: expected a number in (0, 1]"),
        (["data.path=none.txt"], "data.path='none.txt': no such file"),
        (["joint=maybe"], "joint='maybe'"),
        (["joint=true", "data.cache_path=states"], "data.cache_path='states'"),
        (["joint=true", "tuning.method=all"], "tuning.method='all'"),
        (["joint=true", "tuning.heads_weight=-1"], "tuning.heads_weight=-1"),
        (["joint=true", "train=draft_model", "~train.num_heads"], "draft_model has no heads"),
        (["distill.path=answers.json"], "distill.path='answers.json'"),
        (["evaluation.num_prompts=0"], "evaluation.num_prompts=0"),
        (["loss=lk", "loss.eta=none"], "eta='none'"),
        (
            ["decode=[prompts.limit=2]"],
            """expected texts in quotes, 'decode=["prompts.limit=20"]'""",
        ),
        (["decode=[prompts]"], "decode: prompts: missing EQUAL"),
        (["decode=['prompts.limits=2']"], "did you mean prompts.limit?"),
        (["decode=['prompts.limit=1,2']"], "decode: prompts.limit=1,2: expected one value"),
        (["decode=['prompts.limit=0']"], "decode: prompts.limit=0"),
        (["decode=['prompts.path=none.jsonl']"], "decode: prompts.path='none.jsonl': no such file"),
        (["decode=['proposer.path=heads']"], "decode: proposer.path=heads: decodes with what was"),
        (["decode=['output=a']"], "decode: output=a: is for the sweep"),
        (["decode=['resume=false']"], "decode: resume=false: is for the sweep"),
        (["debug=fast", "prompts.limit=3"], "prompts.limit: no such option"),
        (["debug=fast", "max_new_tokens=3"], "max_new_tokens: no such option"),
    ],
)
def test_mistakes_end_a_sweep_before_it_begins(
    tiny: Tiny, cli: CommandLine, overrides: list[str], reason: str
) -> None:
    removed = [text.removeprefix("~") for text in overrides if text.startswith("~")]
    kept = [text for text in options(tiny) if text.split("=")[0] not in removed]
    ended = cli("train", *kept, *[text for text in overrides if not text.startswith("~")])
    assert ended.status == 2, ended.err
    assert reason in ended.err
    assert ended.err.count("\n") == 1
    assert not Path("sweep").exists()


def test_several_processes_are_refused(
    tiny: Tiny, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = cli("train", *options(tiny, "seed=0,1"))
    assert ended.status == 2
    assert "one process" in ended.err

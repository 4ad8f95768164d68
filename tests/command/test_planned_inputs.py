"""Wrong values are found when a sweep is planned: nothing is loaded, nothing has begun."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import TEXT, CommandLine, Tiny

pytestmark = pytest.mark.usefixtures("empty_folder")

DRAFT = "proposer=draft_model"


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loading be a failure of the test."""

    def loaded(*arguments: object) -> None:
        raise AssertionError("weights are loaded before the plan is checked")

    monkeypatch.setattr("specdec.lm.load._proven", loaded)


def spoilt(tiny: Tiny, name: str, spoil: Callable[[Path], Any]) -> None:
    """Copy the tiny verifier and do something to the copy."""
    shutil.copytree(tiny.verifier, name)
    spoil(Path(name))


def configured(**values: object) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return spoil


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def indexed(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def without(*patterns: str) -> Callable[[Path], Any]:
    def spoil(folder: Path) -> None:
        for pattern in patterns:
            for file in folder.glob(pattern):
                file.unlink()

    return spoil


MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no_weights": (without("*.safetensors"), "no weights in that folder"),
    "no_tokenizer": (without("tokenizer*", "vocab*"), "no tokenizer in that folder"),
    "cut_off": (truncated, "model.safetensors is damaged or not wholly there"),
    "shard_lost": (indexed, "model-00002-of-00002.safetensors is missing"),
    "unknown_kind": (configured(model_type="no_such_model"), "not loaded"),
    "encoder": (configured(model_type="whisper", architectures=["Whisper"]), "encoder-decoder"),
    "vision": (configured(model_type="vit"), "vit"),
}


def refused(cli: CommandLine, overrides: list[str], *words: str) -> None:
    """Expect one line with all words, status 2, and no folder of a run."""
    ended = cli("decode", "-m", *overrides, "output=sweep")
    assert ended.status == 2, ended.out
    line = ended.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert len(ended.err.splitlines()) == 1
    for word in words:
        assert word in line, line
    assert not Path("sweep").exists(), "a run has begun"


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_is_none(cli: CommandLine, tiny: Tiny, name: str) -> None:
    spoil, reason = MODELS[name]
    spoilt(tiny, name, spoil)
    own = tiny.options("run", f"verifier.path={tiny.verifier},{name}", "proposer=none")
    refused(cli, own, f"verifier.path='{name}': ", reason)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["verifier.path=zoo:verifier,no/such"], ["verifier.path='no/such': not loaded"]),
        (["verifier.path=zoo:verifier,zoo:x"], ["verifier.path='zoo:x': not in the zoo"]),
        ([DRAFT, "draft.path=zoo:draft,gone"], ["draft.path='gone': not loaded"]),
        (["device=cpu,cuda:7"], ["device='cuda:7'"]),
        (["dtype=float32,int8"], ["dtype='int8'", "bfloat16"]),
        (["attention=sdpa,fast"], ["attention='fast'", "sdpa"]),
        (["prompts.path=zoo:prompts,typo.jsonl"], ["prompts.path='typo.jsonl': no such file"]),
        (["prompts.limit=1,abc"], ["prompts.limit='abc': expected an integer"]),
        (["prompts.limit=1,0"], ["prompts.limit=0: expected an integer"]),
        (["prompts.chat_template=auto,chat"], ["prompts.chat_template='chat'"]),
        (["stop_strings=[a],['']"], ["stop_strings"]),
        (["proposer=ngram", "proposer.max_ngram=2,0"], ["proposer.max_ngram=0"]),
        (["proposer=medusa", "proposer.path=zoo:medusa,zoo:draft"], ["no MedusaHeads"]),
        (["proposer=recorded", "proposer.path=gone"], ["proposer.path='gone': no traces.jsonl"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_a_wrong_value_among_right_ones(
    cli: CommandLine, overrides: list[str], words: list[str]
) -> None:
    refused(cli, ["proposer=none", "prompts.limit=1", *overrides], *words)


def test_prompts_that_cannot_be_decoded(cli: CommandLine, tiny: Tiny) -> None:
    rows = {"bad": '{"prompt": 5}', "long": json.dumps({"id": "long", "prompt": "return " * 300})}
    for name, row in rows.items():
        Path(f"{name}.jsonl").write_text(f'{{"prompt": "def add"}}\n{row}\n')
    own = [f"verifier.path={tiny.verifier}", f"prompts.path={tiny.prompts},bad.jsonl"]
    refused(cli, own, "bad.jsonl:2: ")
    own[-1] = f"prompts.path={tiny.prompts},long.jsonl"
    refused(cli, own, "prompt long: ", "tokens do not fit the verifier's context of 256")


def test_a_draft_of_another_vocabulary(cli: CommandLine, tiny: Tiny) -> None:
    own = [f"verifier.path={tiny.verifier}", DRAFT, f"draft.path={tiny.draft},{tiny.stranger}"]
    refused(
        cli,
        [*own, f"prompts.path={tiny.prompts}"],
        f"draft.path='{tiny.stranger}'",
        "must share the verifier's tokenizer",
    )


def test_heads_of_a_verifier_of_another_size_are_left_out(cli: CommandLine, tiny: Tiny) -> None:
    own = [f"verifier.path=zoo:verifier,{tiny.verifier}", "proposer=medusa", "tree=sparse"]
    ended = cli("decode", "-m", *own, "prompts.limit=1", "--dry-run")
    assert ended.status == 0, ended.err
    assert "1 run from 2 combinations" in ended.out
    assert "left out, 1 combination: proposer.path='zoo:medusa': heads of another" in ended.out


def test_each_value_is_looked_at_once(
    cli: CommandLine, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 jobs plan as fast as their distinct values."""
    from specdec.lab import prompt_options as prompting

    shutil.copytree(tiny.verifier, "fresh")  # that nothing is remembered of
    looked: list[str] = []
    real = prompting.load_prompts

    def noted(path: str, *rest: Any) -> Any:
        looked.append(path)
        return real(path, *rest)

    monkeypatch.setattr(prompting, "load_prompts", noted)
    own = ["verifier.path=fresh", "proposer=ngram", "seed=0,1,2", "tree.gamma=1,2"]
    ended = cli("decode", "-m", *own, f"prompts.path={tiny.prompts}", "--dry-run")
    assert ended.status == 0, ended.err
    assert "6 runs" in ended.out
    assert looked == [str(tiny.prompts)]


def test_what_was_mended_is_looked_at_again(cli: CommandLine, tiny: Tiny) -> None:
    spoilt(tiny, "mine", without("*.safetensors"))
    own = ["verifier.path=mine", "proposer=none,ngram", f"prompts.path={tiny.prompts}"]
    refused(cli, own, "no weights")
    shutil.copy(tiny.verifier / "model.safetensors", "mine")
    assert cli("decode", "-m", *own, "--dry-run").status == 0


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("decode", ["proposer=none"]),
        ("compare", ["arms=['proposer=none']"]),
        ("record", []),
        ("costs", ["output=costs.json", "proposers=[]"]),
    ],
)
def test_single_runs_are_refused_alike(
    cli: CommandLine, tiny: Tiny, command: str, overrides: list[str]
) -> None:
    ended = cli(command, f"verifier.path={tiny.verifier}", "prompts.path=typo.jsonl", *overrides)
    assert ended.status == 2
    assert ended.err.startswith("error: prompts.path='typo.jsonl': no such file")
    spoilt(tiny, "mine", without("*.safetensors"))
    ended = cli(command, "verifier.path=mine", f"prompts.path={tiny.prompts}", *overrides)
    assert ended.err.startswith("error: verifier.path='mine': no weights in that folder")


def test_a_draft_that_costs_is_told_of_is_used(cli: CommandLine, tiny: Tiny) -> None:
    own = [f"verifier.path={tiny.verifier}", f"prompts.path={tiny.prompts}", "output=costs.json"]
    for overrides in ([f"draft.path={tiny.stranger}"], [f"options=['draft.path={tiny.stranger}']"]):
        ended = cli("costs", *own, *overrides, "proposers=[draft_model]")
        assert ended.status == 2
        assert f"draft.path='{tiny.stranger}'" in ended.err


TRAINED = ["train=medusa", "train.num_heads=2", "tree.gamma=2", "max_steps=1,2"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["verifier.path=zoo:verifier,gone"], ["verifier.path='gone': not loaded"]),
        (["data.path=own.txt,gone.txt"], ["data.path='gone.txt': no such file"]),
        (["data.path=own.txt,bad.jsonl"], ["bad.jsonl:1"]),
        (["decode=['prompts.path=gone.jsonl']"], ["decode: prompts.path='gone.jsonl'"]),
        (["decode=['prompts.limit=abc']"], ["prompts.limit='abc'"]),
        (
            ["train=draft_model", "train.init_path=zoo:draft,gone"],
            ["train.init_path='gone': not loaded"],
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_trainings_are_looked_at_beforehand(
    cli: CommandLine, overrides: list[str], words: list[str]
) -> None:
    Path("bad.jsonl").write_text('{"nothing": 1}\n')
    Path("own.txt").write_text(TEXT)
    data = ["data.path=own.txt", "data.held_out_path=own.txt"]
    common = [
        text for text in TRAINED if not (text.startswith("train") and "draft" in overrides[0])
    ]
    ended = cli("train", "-m", *common, *data, *overrides, "output=sweep")
    assert ended.status == 2, ended.out
    for word in words:
        assert word in ended.err.splitlines()[-1]
    assert not Path("sweep").exists()
